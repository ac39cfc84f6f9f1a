package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func volumeTable(w io.Writer, vols []*pb.Volume) {
	table(w, "VOLUME SIZE HEALTH ATTACHED DEVICE REPLICAS", func(row func(...any)) {
		for _, v := range vols {
			size := "?" // without the metadata
			if v.Size > 0 {
				size = spec.FormatSize(v.Size)
			}
			row(v.Name, size, healthText(v), attachedText(v), v.Device, replicaNodes(v))
		}
	})
}

// healthText is the health, with the progress of a resync or a scrub.
func healthText(v *pb.Volume) string {
	var done, total int64
	for _, c := range v.Columns {
		for _, m := range c.Members {
			done, total = done+m.ResyncDone, total+m.ResyncTotal
		}
	}
	if total == 0 && v.Scrub.GetState() == api.ScrubRunning && v.Scrub.Total > 0 {
		return fmt.Sprintf("%s (scrub %d%%)", v.Health, v.Scrub.Done*100/v.Scrub.Total)
	}
	if total == 0 {
		return v.Health
	}
	return fmt.Sprintf("%s (resync %d%%)", v.Health, done*100/total)
}

func attachedText(v *pb.Volume) string {
	if v.Node == "" || v.Frontend == spec.FrontendNone {
		return ""
	}
	return v.Node
}

// replicaNodes lists the nodes of the replicas; columns are set apart by '|'.
func replicaNodes(v *pb.Volume) string {
	cols := make([]string, 0, len(v.Columns))
	for _, c := range v.Columns {
		ns := make([]string, 0, len(c.Members))
		for _, m := range c.Members {
			n := m.Node
			if m.State != string(spec.InSync) || !m.Alive {
				n += "!"
			}
			ns = append(ns, n)
		}
		cols = append(cols, strings.Join(ns, ","))
	}
	return strings.Join(cols, "|")
}

func volumeDetails(w io.Writer, v *pb.Volume) {
	attached := "no"
	switch {
	case v.Frontend == spec.FrontendNone && v.Node != "":
		attached = "no; node " + v.Node + " rebuilds or scrubs it"
	case v.Node != "":
		attached = fmt.Sprintf("on node %s, frontend %s", v.Node, v.Frontend)
	}
	policy := fmt.Sprintf("%d replicas", v.Replicas)
	if v.ColumnCount > 1 {
		policy += fmt.Sprintf(", %d columns", v.ColumnCount)
	}
	if v.ZoneSpread {
		policy += ", in different zones"
	}
	if len(v.NodeSelector) > 0 {
		policy += ", on nodes with " + labelsText(v.NodeSelector)
	}
	if v.Media != "" {
		policy += ", on " + v.Media
	}
	fields(w, "Volume", v.Name, "ID", v.Id, "Size", sizeText(v), "Policy", policy, "Health", v.Health,
		"Condition", v.Condition, "Attached", attached, "Device", v.Device, "Encryption", encryptionText(v), "Term", v.Term,
		"Created", v.Created.AsTime().Format(timeFormat), "Scrub", scrubText(v.Scrub), "Last scrub", lastScrubText(v.Scrub))
	fields(w, "Copies", v.Resettling)
	fields(w, policyFields(v)...)
	if e := v.Ephemeral; e != nil {
		fields(w, "Made for", fmt.Sprintf("a pod on node %s, at %s: it is deleted with it", e.Node, e.Path))
	}
	for _, b := range v.Scrub.GetLast().GetFindings().GetBad() {
		fmt.Fprintf(w, "! %s\n", badText(b))
	}
	for i, c := range v.Columns {
		fmt.Fprintf(w, "\nColumn %d\n", i)
		ms := slices.Clone(c.Members)
		table(w, "REPLICA NODE POOL STATE SINCE PROGRESS WHY", func(row func(...any)) {
			for _, m := range ms {
				row(m.Replica, m.Node, m.Pool, memberState(m), m.Since.AsTime().Format("2006-01-02 15:04:05"), progressText(m), m.Reason)
			}
		})
	}
}

// encryptionText is the cipher and the wrapping key; "" for a volume that isn't encrypted.
func encryptionText(v *pb.Volume) string {
	if v.Encryption == nil {
		return ""
	}
	return fmt.Sprintf("%s, its key wrapped by %s", v.Encryption.Cipher, v.Encryption.Key)
}

func memberState(m *pb.Member) string {
	s := m.State
	if !m.Alive {
		s += ",gone"
	}
	if m.Removing {
		s += ",removing"
	}
	return s
}

func progressText(m *pb.Member) string {
	if m.ResyncTotal == 0 {
		return ""
	}
	return fmt.Sprintf("%d%% of %s", m.ResyncDone*100/m.ResyncTotal, spec.FormatSize(m.ResyncTotal))
}
