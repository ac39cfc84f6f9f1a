package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/doctor"
	"keelson.io/keelson/internal/server"
)

// DoctorOptions are the flags of doctor.
type DoctorOptions struct {
	Devices    []string
	KubeletDir string
	Print      string
	output     outputFlag
}

func newDoctorCommand(g *globalOptions) *cobra.Command {
	var o DoctorOptions
	cmd := &cobra.Command{
		Use: "doctor", Short: "Tell what on this machine is missing for a node, or dangerous", Args: args(cobra.NoArgs),
		Long: "Tell what on this machine is missing for a node, or dangerous.\n\n" +
			"It needs no running server and no configuration, and changes nothing: run it, as root, before anything is installed, and\n" +
			"when something is wrong. It ends with 0 if nothing is dangerous or missing, otherwise with 1.",
		Example: "  keelson doctor\n  keelson doctor --device /dev/sdb -o json\n  keelson doctor --print udev >/etc/udev/rules.d/90-keelson.rules",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), g, o, cmd.OutOrStdout()) },
	}
	cmd.Flags().StringArrayVar(&o.Devices, "device", nil, "a device that shall become a pool; can be given several times")
	cmd.Flags().StringVar(&o.KubeletDir, "kubelet-dir", server.DefaultKubeletDir, "where kubelet keeps its pods")
	cmd.Flags().StringVar(&o.Print, "print", "", "print a file instead: udev, the rule that marks Keelson's devices, or multipath, the configuration that keeps multipathd from them")
	o.output.register(cmd)
	completeFlag(cmd, "print", words("udev", "multipath"))
	return cmd
}

// errDangerous: the doctor found something that keeps a node from working, or from working safely.
var errDangerous = errors.New("this machine isn't fit for a node")

func runDoctor(ctx context.Context, g *globalOptions, o DoctorOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	switch o.Print {
	case "":
	case "udev":
		_, err := io.WriteString(w, doctor.UdevRules)
		return err
	case "multipath":
		_, err := io.WriteString(w, doctor.MultipathConf)
		return err
	default:
		return usageError{fmt.Errorf("--print %q is neither udev nor multipath", o.Print)}
	}
	list, err := examine(ctx, g, o)
	if err != nil {
		return err
	}
	if err := o.output.print(w, list, func(w io.Writer) { findings(w, list) }); err != nil {
		return err
	}
	if n := doctor.Dangers(list); n > 0 {
		return fmt.Errorf("%w: %d findings are dangerous", errDangerous, n)
	}
	return nil
}

// examine has the doctor look at this machine. A configuration that can't be read is a finding.
func examine(ctx context.Context, g *globalOptions, o DoctorOptions) ([]doctor.Finding, error) {
	m, err := server.NewDoctor()
	if err != nil {
		return nil, err
	}
	cfg, err := server.LoadConfig(g.config)
	bad := doctor.Finding{Check: "configuration", State: doctor.OK, Found: "it can be read, or there is none yet"}
	if err != nil {
		bad = doctor.Finding{Check: "configuration", State: doctor.Danger, Found: err.Error(), Why: "keelson server doesn't start with it", Do: "mend it; the other checks take the defaults"}
		cfg = server.DefaultConfig()
	}
	if g.dataDir != "" {
		cfg.DataDir = g.dataDir
	}
	opts := cfg.DoctorOptions()
	opts.Devices, opts.KubeletDir = o.Devices, o.KubeletDir
	if bad.State != doctor.OK {
		opts.Keys = nil // what is configured isn't known
	}
	return append([]doctor.Finding{bad}, doctor.Examine(ctx, m, opts)...), nil
}

// findings writes a line for each finding; below those that ask for something, why, and what to do.
func findings(w io.Writer, list []doctor.Finding) {
	for _, f := range list {
		fmt.Fprintf(w, "%-8s %-18s %s\n", strings.ToUpper(string(f.State)), f.Check, f.Found)
		if f.State == doctor.OK {
			continue
		}
		if f.Why != "" {
			fmt.Fprintf(w, "%27s why: %s\n", "", f.Why)
		}
		if f.Do != "" {
			fmt.Fprintf(w, "%27s do:  %s\n", "", f.Do)
		}
	}
}
