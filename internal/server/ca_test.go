package server

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// Nodes are "name trusts/peers/issuer/keys", each of o and n, the old and the new CA, peers and keys perhaps none, and m at the end for the
// role metadata. Members are names, learners with a star, those that don't answer with a dash. The plan is "phase turn=.. without=.. keep".
func TestCAIsChanged(t *testing.T) {
	for name, x := range map[string]struct{ plan, nodes, members, want string }{
		"begun":                                   {"trust", "n1 o/o/o/on m, n2 o/o/o/o m, n3 o//o/", "n1 n2", "trust"},
		"one after another":                       {"trust", "n1 on/o/o/on m, n2 on/o/o/on m, n3 on//o/", "n1 n2", "trust turn=n1"},
		"it starts anew":                          {"trust turn=n1", "n1 on/o/o/on m, n2 on/o/o/on m", "n1- n2", "trust turn=n1"},
		"it has":                                  {"trust turn=n1", "n1 on/on/o/on m, n2 on/o/o/on m", "n1 n2", "trust"},
		"the next":                                {"trust", "n1 on/on/o/on m, n2 on/o/o/on m", "n1 n2", "trust turn=n2"},
		"not while another one is missed":         {"trust", "n1 on/o/o/on m, n2 on/o/o/on m, n3 o/o/o/o m", "n1 n2 n3-", "trust"},
		"but if the others are a quorum":          {"trust", "n1 on/o/o/on m, n2 o/o/o/o m, n3 o/o/o/o m, n4 o/o/o/o m, n5 o/o/o/o m", "n1 n2 n3 n4 n5-", "trust turn=n1"},
		"or it was left out":                      {"trust without=n3", "n1 on/o/o/on m, n2 on/o/o/on m, n3 o/o/o/o m", "n1 n2 n3-", "trust turn=n1"},
		"not while one learns":                    {"trust", "n1 on/o/o/on m, n2 on//o/on m", "n1 n2*", "trust"},
		"not one that isn't there":                {"trust without=n1", "n1 on/o/o/on m, n2 on/o/o/on m", "n1- n2", "trust turn=n2"},
		"the turn of a node that was removed":     {"trust turn=n9", "n1 on/on/o/on m, n2 o//o/", "n1", "trust"},
		"the turn of one that was left out":       {"trust turn=n1 without=n1", "n1 on/o/o/on m, n2 o//o/", "n1-", "trust"},
		"a key is missing":                        {"trust", "n1 on/on/o/o m, n2 on//o/", "n1", "trust"},
		"all trust it":                            {"trust", "n1 on/on/o/on m, n2 on//o/", "n1", "issue"},
		"all but one that was left out":           {"trust without=n2", "n1 on/on/o/on m, n2 o//o/", "n1", "issue"},
		"a certificate is missing":                {"issue", "n1 no/on/n/on m, n2 no//o/", "n1", "issue"},
		"all have certificates":                   {"issue", "n1 no/on/n/on m, n2 no//n/", "n1", "retire"},
		"but the old one is to be kept":           {"issue keep", "n1 no/on/n/on m, n2 no//n/", "n1", "issue keep"},
		"one trusts the old one":                  {"retire", "n1 n/n/n/n m, n2 no//n/", "n1", "retire"},
		"its member does":                         {"retire", "n1 n/on/n/n m, n2 n//n/", "n1", "retire turn=n1"},
		"the old key is there":                    {"retire", "n1 n/n/n/on m, n2 n//n/", "n1", "retire"},
		"done":                                    {"retire", "n1 n/n/n/n m, n2 n//n/", "n1", "done"},
		"done, without one":                       {"retire without=n2", "n1 n/n/n/n m, n2 o//o/", "n1", "done"},
		"the metadata is an etcd of its own":      {"retire", "n1 n//n/n m", "", "done"},
		"a node of before, which knows no phases": {"issue", "n1 no/on/n/on m, n2 ///", "n1", "issue"},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			v := caView{now: now}
			v.plan.Next = "n"
			for i, f := range strings.Fields(x.plan) {
				key, val, _ := strings.Cut(f, "=")
				switch {
				case i == 0:
					v.plan.Phase = spec.CAPhase(f)
				case key == "turn":
					v.plan.Turn = val
				case key == "without":
					v.plan.Without = []string{val}
				case key == "keep":
					v.plan.KeepOld = now.Add(time.Hour)
				}
			}
			for _, text := range strings.Split(x.nodes, ", ") {
				f := append(strings.Fields(text), "")
				has := strings.Split(f[1], "/")
				list := func(s string) []string {
					return slices.DeleteFunc(strings.Split(s, ""), func(c string) bool { return c == "" })
				}
				n := spec.Node{Name: f[0], CA: spec.NodeCA{Trusts: list(has[0]), Peers: list(has[1]), Issuer: has[2], Keys: list(has[3])}}
				if f[2] == "m" {
					n.Roles = []spec.Role{spec.RoleMetadata}
				}
				v.nodes = append(v.nodes, n)
			}
			for _, name := range strings.Fields(x.members) {
				v.members = append(v.members, &pb.MetadataMember{Name: strings.Trim(name, "*-"), Learner: strings.HasSuffix(name, "*"), Healthy: !strings.HasSuffix(name, "-")})
			}
			got := "done"
			if p := v.decide(); p != nil {
				got = string(p.Phase)
				if p.Turn != "" {
					got += " turn=" + p.Turn
				}
				if !p.KeepOld.IsZero() {
					got += " keep"
				}
			}
			if got != x.want {
				t.Errorf("%q, want %q", got, x.want)
			}
		})
	}
}

// TestCAFilesAfterCrashes takes the files of a metadata node through all phases, and repeats each from every state that a crash in it can leave:
// each can be gone on from, and leads to the same end.
func TestCAFilesAfterCrashes(t *testing.T) {
	const cluster = "00000000000000aa"
	dataDir := t.TempDir()
	dir := pkiDir(dataDir)
	before, err := pki.NewCA(cluster)
	must(t, err)
	must(t, dir.SaveCA(before))
	id := pki.Identity{Cluster: cluster, Role: pki.RoleNode, Node: "n1"}
	p, err := before.NewPair(id, nil)
	must(t, err)
	must(t, dir.SavePair(pki.NodePair, p))
	_, _, err = rotation{dir}.Next(cluster) // one that nobody has heard of
	must(t, err)
	hash, bundle, err := rotation{dir}.Next(cluster)
	must(t, err)
	plan, err := pki.ParseCA(bundle)
	must(t, err)
	if pki.Hash(plan.Cert) != hash || len(plan.Others) != 1 || len(plan.Cross) != 1 {
		t.Fatalf("%+v", plan)
	}
	usable := func(at string) *pki.CA {
		t.Helper()
		ca, err := dir.LoadCA()
		if err != nil || ca.Key == nil {
			t.Fatalf("%s: %+v, %v", at, ca, err)
		}
		pair, err := dir.LoadPair(pki.NodePair)
		if err != nil || ca.Issuer(pair.Cert) == "" {
			t.Fatalf("%s: the node's own certificate isn't trusted: %v", at, err)
		}
		return ca
	}
	for _, phase := range []spec.CAPhase{spec.CATrust, spec.CAIssue, spec.CARetire} {
		if _, err := applyCA(dir, plan, phase); phase == spec.CARetire && err != nil {
			t.Fatal(err)
		}
		usable(string(phase))
		after := filesOf(t, dir)
		if changed, err := applyCA(dir, plan, phase); err != nil || changed || !sameFiles(after, filesOf(t, dir)) {
			t.Fatalf("%s, repeated: %v, %v", phase, changed, err)
		}
		ca := usable(string(phase))
		switch phase {
		case spec.CATrust:
			if !ca.Cert.Equal(before.Cert) || len(ca.Others) != 1 {
				t.Fatalf("%d", len(ca.Others))
			}
			// The old certificate is trusted by nobody at the end: a node that has no other one stays as it is.
			if _, err := applyCA(dir, plan, spec.CARetire); err == nil || !sameFiles(after, filesOf(t, dir)) {
				t.Fatalf("the old CA was given up with a certificate of it: %v", err)
			}
		case spec.CAIssue:
			p, err = ca.Renew(id, nil, p.Key)
			must(t, err)
			must(t, dir.SaveCert(pki.NodePair, p.Cert))
			// What a crash leaves of the last phase.
			for i, step := range []func() error{
				func() error { return dir.NoteFormer(ca, plan.Cert) },
				func() error { return dir.KeepKeyOf(plan.Cert) },
			} {
				must(t, step())
				usable("the last phase, after a crash")
				n, err := nodeCA(Config{DataDir: dataDir, RunDir: t.TempDir()})
				must(t, err)
				if (spec.CARotation{Phase: spec.CARetire, Next: hash}).WaitsFor(spec.Node{CA: n}) == "" {
					t.Fatalf("the node is done after step %d", i)
				}
			}
		case spec.CARetire:
			keys, err := dir.Keys()
			if err != nil || len(keys) != 1 || !ca.Cert.Equal(plan.Cert) || len(ca.Others)+len(ca.Cross) != 0 {
				t.Fatalf("%d keys, %+v, %v", len(keys), ca, err)
			}
		}
	}
	// A state of the metadata that was restored may be older: nothing that is trusted is taken away, and the end is the same.
	for _, phase := range []spec.CAPhase{spec.CATrust, spec.CAIssue, spec.CARetire} {
		if _, err := applyCA(dir, plan, phase); err != nil {
			t.Fatal(err)
		}
	}
	usable("the end")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func filesOf(t *testing.T, dir pki.Dir) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, fs.WalkDir(os.DirFS(string(dir)), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(dir.Path(path))
		out[path] = string(b)
		return err
	}))
	return out
}

func sameFiles(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// TestLeftOutNodeRejoins: a node that was left out when the CA was changed comes back with a token of the new one, and stays the same node. A
// token that names a CA of the cluster's past hinders nobody.
func TestLeftOutNodeRejoins(t *testing.T) {
	c := newCluster(t)
	old := c.token(t, spec.RoleStorage)
	cfg := c.joiner(t, "n2", old)
	cfg.Roles = []spec.Role{spec.RoleStorage}
	must(t, Prepare(t.Context(), cfg))
	was, err := cfg.ownState()
	must(t, err)
	dir := pkiDir(c.cfg.DataDir)
	_, bundle, err := rotation{dir}.Next(was.ClusterID)
	must(t, err)
	plan, err := pki.ParseCA(bundle)
	must(t, err)
	for _, phase := range []spec.CAPhase{spec.CATrust, spec.CAIssue, spec.CARetire} {
		_, err := applyCA(dir, plan, phase)
		must(t, err)
		must(t, renewOwn(c.cfg, c.st))
	}
	if c.ca, err = dir.LoadCA(); err != nil || !c.ca.Cert.Equal(plan.Cert) {
		t.Fatal(err)
	}
	if _, err := c.call(cfg); err == nil {
		t.Fatal("a certificate of the old CA was accepted")
	}
	must(t, Prepare(t.Context(), cfg)) // with the old token, which is of a CA that it trusts
	cfg.Join.Token = c.token(t, spec.RoleStorage)
	must(t, Prepare(t.Context(), cfg))
	if code, err := c.call(cfg); err != nil {
		t.Fatal(code, err)
	}
	now, err := cfg.ownState()
	if err != nil || now.NodeID != was.NodeID || now.ClusterID != was.ClusterID {
		t.Errorf("%+v, %v; was %+v", now, err, was)
	}
	mine := c.cfg
	mine.Join = JoinConfig{URL: c.url, Token: old}
	must(t, Prepare(t.Context(), mine))
}

// TestAuthorityIsRead: what a process holds is the CA as it is now, and signs for as long as the configuration says.
func TestAuthorityIsRead(t *testing.T) {
	cfg := metadataNode(t, 23)
	must(t, Prepare(t.Context(), cfg))
	id, err := loadIdentity(cfg.DataDir)
	must(t, err)
	id.signFor(time.Hour)
	_, bundle, err := rotation{id.dir}.Next("00000000000000aa")
	must(t, err)
	plan, err := pki.ParseCA(bundle)
	must(t, err)
	for _, trusted := range []int{1, 2} {
		if ca, err := id.authority(); err != nil || ca.NodeValid != time.Hour || len(ca.Roots()) != trusted {
			t.Errorf("%+v, %v, want %d trusted", ca, err, trusted)
		}
		_, err = applyCA(id.dir, plan, spec.CATrust)
		must(t, err)
	}
}
