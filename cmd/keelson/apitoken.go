package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
)

func newAPITokenCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "api-token", Short: "Make and manage the tokens with which people and programs call the API"},
		newAPITokenCreateCommand(g), newAPITokenListCommand(g), newAPITokenRevokeCommand(g))
}

// APITokenCreateOptions are the flags of api-token create.
type APITokenCreateOptions struct {
	Name, Role string
	TTL        lifetime
	output     outputFlag
}

func newAPITokenCreateCommand(g *globalOptions) *cobra.Command {
	o := APITokenCreateOptions{TTL: lifetime(api.DefaultAPITokenTTL)}
	cmd := &cobra.Command{
		Use: "create --role viewer|operator|admin", Short: "Make an API token, and print it; it is shown only once", Args: args(cobra.NoArgs),
		Example: "  keelson api-token create --role viewer --ttl 30d --name grafana",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAPITokenCreate(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.Role, "role", "", "what its holder may do: viewer, operator or admin")
	cmd.Flags().StringVar(&o.Name, "name", "", "what it is for, or whose it is: a DNS label (default: the role)")
	cmd.Flags().Var(&o.TTL, "ttl", "how long it can be used, such as 30d or 12h; at most a year")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	o.output.register(cmd)
	return cmd
}

func runAPITokenCreate(ctx context.Context, g *globalOptions, o APITokenCreateOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	if o.Role == "" {
		return usageError{fmt.Errorf("--role is missing: viewer, operator or admin")}
	}
	if o.Name == "" {
		o.Name = o.Role
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Access.CreateAPIToken(ctx, &pb.CreateAPITokenRequest{Name: o.Name, Role: o.Role, Ttl: durationpb.New(time.Duration(o.TTL))})
	if err != nil {
		return err
	}
	return o.output.print(w, plain(r), func(w io.Writer) { fmt.Fprintln(w, r.Token) })
}

func newAPITokenListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the API tokens, without their secrets", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAPITokenList(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runAPITokenList(ctx context.Context, g *globalOptions, o outputFlag, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Access.ListAPITokens(ctx, &pb.ListAPITokensRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plainList(r.Tokens), func(w io.Writer) {
		table(w, "ID NAME ROLE CREATED EXPIRES", func(row func(...any)) {
			for _, t := range r.Tokens {
				row(t.Id, t.Name, t.Role, t.Created.AsTime().Format(timeFormat), t.Expires.AsTime().Format(timeFormat))
			}
		})
	})
}

func newAPITokenRevokeCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Aliases: []string{"delete", "rm"}, Short: "Have an API token refused from now on", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			_, err = c.Access.RevokeAPIToken(cmd.Context(), &pb.RevokeAPITokenRequest{Id: a[0]})
			return err
		},
	}
}
