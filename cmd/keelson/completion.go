package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// completeWithin bounds how long the shell waits for names.
const completeWithin = 2 * time.Second

func newCompletionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "completion", Short: "Print the completion script of a shell",
		Example: "  source <(keelson completion bash)\n  keelson completion bash >/etc/bash_completion.d/keelson",
	}
	for shell, write := range map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(root *cobra.Command, w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"zsh":        (*cobra.Command).GenZshCompletion,
		"fish":       func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) },
		"powershell": (*cobra.Command).GenPowerShellCompletionWithDesc,
	} {
		cmd.AddCommand(&cobra.Command{
			Use: shell, Short: "Print the completion script of " + shell, Args: args(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error { return write(cmd.Root(), cmd.OutOrStdout()) },
		})
	}
	return group(cmd)
}

// completeFlag completes a flag's value: with fixed words, or with names that are asked for.
func completeFlag(cmd *cobra.Command, flag string, names completer) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return names(cmd, nil, prefix)
	})
	if err != nil {
		panic(err) // the flag doesn't exist: a mistake in the program, found by any test
	}
}

func words(list ...string) completer {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
}

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func completeNodes(g *globalOptions) completer {
	return completeFirst(func(ctx context.Context) ([]string, error) {
		c, err := g.client()
		if err != nil {
			return nil, err
		}
		r, err := c.Nodes.ListNodes(ctx, &pb.ListNodesRequest{})
		var out []string
		for _, n := range r.GetNodes() {
			out = append(out, n.Name)
		}
		return out, err
	})
}

func completeVolumes(g *globalOptions) completer {
	return completeFirst(func(ctx context.Context) ([]string, error) {
		c, err := g.client()
		if err != nil {
			return nil, err
		}
		r, err := c.Volumes.ListVolumes(ctx, &pb.ListVolumesRequest{})
		var out []string
		for _, v := range r.GetVolumes() {
			out = append(out, v.Name)
		}
		return out, err
	})
}

func completePools(g *globalOptions) completer {
	return completeFirst(func(ctx context.Context) ([]string, error) {
		c, err := g.client()
		if err != nil {
			return nil, err
		}
		r, err := c.Pools.ListPools(ctx, &pb.ListPoolsRequest{})
		var out []string
		for _, p := range r.GetPools() {
			out = append(out, p.Id)
		}
		return out, err
	})
}

// completeFirst completes the first argument only.
func completeFirst(names func(context.Context) ([]string, error)) completer {
	return func(cmd *cobra.Command, a []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(a) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
		defer cancel()
		out, err := names(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
