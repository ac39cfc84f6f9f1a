package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/lab"
)

// labOptions say which lab is meant.
type labOptions struct{ name, dir string }

// resolve fills in what follows from the other: a lab's own directory, or the name of one that was
// given a directory of its own.
func (o *labOptions) resolve() error {
	if o.dir != "" {
		abs, err := filepath.Abs(o.dir)
		if err != nil {
			return err
		}
		o.dir = abs
	}
	switch {
	case o.name == "" && o.dir == "":
		o.name = lab.DefaultName
		o.dir = lab.Dir(o.name)
	case o.dir == "":
		o.dir = lab.Dir(o.name)
	case o.name == "":
		o.name = filepath.Base(o.dir)
	}
	return nil
}

func (o *labOptions) load() (*lab.Lab, error) {
	if err := o.resolve(); err != nil {
		return nil, err
	}
	return lab.Load(o.dir)
}

func newLabCommand() *cobra.Command {
	o := &labOptions{}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run a cluster of real daemons on this machine, to try and to test Keelson",
		Long: `A lab is a cluster on this machine: every node runs the real daemons in a network
namespace with an address of its own, with its own mounts, processes and pool file.
It needs root. Labs with different names live side by side.`,
	}
	cmd.PersistentFlags().StringVar(&o.name, "name", "", `name of the lab (default "`+lab.DefaultName+`")`)
	cmd.PersistentFlags().StringVar(&o.dir, "dir", "", "directory of the lab (default "+lab.Dir("NAME")+")")
	return group(cmd,
		newLabUpCommand(o), newLabStatusCommand(o), newLabCutCommand(o), newLabHealCommand(o), newLabKillCommand(o),
		newLabStartCommand(o), newLabExecCommand(o), newLabDownCommand(o), newLabKeeperCommand(o),
	)
}

func newLabUpCommand(o *labOptions) *cobra.Command {
	cfg := lab.Config{}
	cmd := &cobra.Command{
		Use: "up", Short: "Make the lab and wait until its cluster is healthy", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runLabUp(cmd, o, cfg) },
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Nodes, "nodes", lab.DefaultNodes, "number of nodes, named n1, n2, …; the first three hold the metadata")
	f.IntVar(&cfg.Zones, "zones", lab.DefaultNodes, "number of zones, named z1, z2, …, to which the nodes are dealt out")
	f.StringVar(&cfg.PoolSize, "pool-size", lab.DefaultPoolSize, `size of each node's pool file, which is sparse; "" for no pools`)
	f.BoolVar(&cfg.Plain, "plain", false, "don't encrypt what travels between the engines")
	return cmd
}

func runLabUp(cmd *cobra.Command, o *labOptions, cfg lab.Config) error {
	if err := o.resolve(); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("zones") {
		cfg.Zones = min(cfg.Zones, cfg.Nodes)
	}
	began := time.Now()
	cfg.Name, cfg.Dir, cfg.Binary = o.name, o.dir, binary
	cfg.Report = func(what string, took time.Duration) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%6.1f s  %s (%.1f s)\n", time.Since(began).Seconds(), what, took.Seconds())
	}
	l, err := lab.Up(cmd.Context(), cfg)
	if err != nil {
		if errors.Is(err, lab.ErrExists) {
			return fmt.Errorf("%w; remove it with `keelson lab%s down`, or give another --name", err, o.flags())
		}
		if l != nil {
			err = fmt.Errorf("%w\nWhat was made stays to be looked at; `keelson lab%s down` removes it", err, o.flags())
		}
		return err
	}
	w := cmd.OutOrStdout()
	labTable(w, l.Status())
	first := l.Nodes()[0]
	fmt.Fprintf(w, "\nLab %s is up after %.1f s. Go on with:\n", l.Name(), time.Since(began).Seconds())
	fmt.Fprintf(w, "  keelson lab%s exec %s -- keelson status\n", o.flags(), first)
	fmt.Fprintf(w, "  keelson lab%s exec %s -- bash\n", o.flags(), first)
	fmt.Fprintf(w, "  keelson lab%s down\n", o.flags())
	return nil
}

// flags returns what a command needs to mean the same lab.
func (o *labOptions) flags() string {
	s := ""
	if o.name != lab.DefaultName {
		s += " --name " + o.name
	}
	if o.dir != lab.Dir(o.name) {
		s += " --dir " + o.dir
	}
	return s
}

func newLabStatusCommand(o *labOptions) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use: "status", Short: "Show the lab's nodes and their processes", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			l, err := o.load()
			if err != nil {
				return err
			}
			s := l.Status()
			return out.print(cmd.OutOrStdout(), s, func(w io.Writer) { labTable(w, s) })
		},
	}
	out.register(cmd)
	return cmd
}

func labTable(w io.Writer, nodes []lab.NodeStatus) {
	table(w, "NODE STATE ADDRESS ZONE ROLES PROCESSES", func(row func(...any)) {
		for _, n := range nodes {
			state := "down"
			if n.Up {
				state = "up"
			}
			if n.Cut {
				state += ",cut"
			}
			var procs []string
			for _, name := range []string{"server", "etcd", "engine", "control", "holder"} {
				if pid, ok := n.PIDs[name]; ok {
					procs = append(procs, fmt.Sprintf("%s:%d", name, pid))
				}
			}
			row(n.Name, state, n.Address, n.Zone, strings.Join(n.Roles, ","), strings.Join(procs, " "))
		}
	})
}

func newLabCutCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "cut NODE", Short: "Cut a node off the network: drop all packets from and to it", Args: args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeLabNodes(o),
		RunE: func(_ *cobra.Command, a []string) error {
			l, err := o.load()
			if err != nil {
				return err
			}
			return l.Cut(a[0])
		},
	}
}

func newLabHealCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "heal NODE", Short: "Undo cut", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeLabNodes(o),
		RunE: func(_ *cobra.Command, a []string) error {
			l, err := o.load()
			if err != nil {
				return err
			}
			return l.Heal(a[0])
		},
	}
}

func newLabKillCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "kill NODE [server|etcd|engine|control|holder]", Short: "Crash a node, or kill one of its processes with SIGKILL",
		Args: args(cobra.RangeArgs(1, 2)), ValidArgsFunction: completeLabNodes(o),
		RunE: func(_ *cobra.Command, a []string) error {
			l, err := o.load()
			if err != nil {
				return err
			}
			if len(a) == 2 {
				return l.KillProcess(a[0], a[1])
			}
			return l.Kill(a[0])
		},
	}
}

func newLabStartCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "start NODE", Short: "Start a node that was killed", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: completeLabNodes(o),
		RunE: func(_ *cobra.Command, a []string) error {
			l, err := o.load()
			if err != nil {
				return err
			}
			return l.Start(a[0])
		},
	}
}

func newLabExecCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "exec NODE -- COMMAND [ARGUMENT…]", Short: "Run a command on a node",
		Long: "Run a command on a node: in its namespaces, with `keelson` in the path that talks to the node's own daemon.\n" +
			"The exit code is the command's.",
		Args: args(cobra.MinimumNArgs(2)), ValidArgsFunction: completeLabNodes(o),
		RunE: func(_ *cobra.Command, a []string) error {
			l, err := o.load()
			if err != nil {
				return err
			}
			return l.Exec(a[0], a[1:]...)
		},
	}
}

func newLabDownCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove the lab, with all data on it, and leave nothing behind", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.resolve(); err != nil {
				return err
			}
			err := lab.Down(o.name, o.dir)
			if errors.Is(err, lab.ErrNoLab) {
				fmt.Fprintf(cmd.OutOrStdout(), "There is no lab %s.\n", o.name)
				return nil
			}
			return err
		},
	}
}

func newLabKeeperCommand(o *labOptions) *cobra.Command {
	return &cobra.Command{
		Use: "keeper NODE", Short: "First process of a lab's node", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error { return lab.RunKeeper(o.dir, a[0]) },
	}
}

func completeLabNodes(o *labOptions) cobra.CompletionFunc {
	return func(_ *cobra.Command, a []string, _ string) ([]string, cobra.ShellCompDirective) {
		l, err := o.load()
		if err != nil || len(a) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return l.Nodes(), cobra.ShellCompDirectiveNoFileComp
	}
}
