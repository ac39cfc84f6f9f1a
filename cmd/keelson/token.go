package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

func newTokenCommand(g *globalOptions) *cobra.Command {
	return group(&cobra.Command{Use: "token", Short: "Make and manage the tokens with which nodes join"},
		newTokenCreateCommand(g), newTokenListCommand(g), newTokenDeleteCommand(g))
}

// TokenCreateOptions are the flags of token create.
type TokenCreateOptions struct {
	Roles  []string
	TTL    lifetime
	output outputFlag
}

func newTokenCreateCommand(g *globalOptions) *cobra.Command {
	o := TokenCreateOptions{TTL: lifetime(api.DefaultTokenTTL)}
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token, and print it; it is shown only once", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTokenCreate(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&o.Roles, "role", []string{"metadata", "storage"}, "roles that it gives")
	cmd.Flags().Var(&o.TTL, "ttl", "how long it can be used, for any number of nodes")
	o.output.register(cmd)
	return cmd
}

func runTokenCreate(ctx context.Context, g *globalOptions, o TokenCreateOptions, w io.Writer) error {
	if err := o.output.check(); err != nil {
		return err
	}
	for _, role := range o.Roles {
		if _, err := spec.ParseAPIRole(role); err == nil {
			return usageError{fmt.Errorf("%s is a role of API tokens, and this makes tokens for joining; give: keelson api-token create --role %s", role, role)}
		}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{Roles: o.Roles, Ttl: durationpb.New(time.Duration(o.TTL))})
	if err != nil {
		return err
	}
	return o.output.print(w, plain(r), func(w io.Writer) { fmt.Fprintln(w, r.Token) })
}

func newTokenListCommand(g *globalOptions) *cobra.Command {
	var o outputFlag
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the tokens, without their secrets", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTokenList(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	o.register(cmd)
	return cmd
}

func runTokenList(ctx context.Context, g *globalOptions, o outputFlag, w io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	r, err := c.Cluster.ListTokens(ctx, &pb.ListTokensRequest{})
	if err != nil {
		return err
	}
	return o.print(w, plainList(r.Tokens), func(w io.Writer) {
		table(w, "TOKEN ROLES CREATED EXPIRES", func(row func(...any)) {
			for _, t := range r.Tokens {
				row(t.Id, strings.Join(t.Roles, ","), t.Created.AsTime().Format(timeFormat), t.Expires.AsTime().Format(timeFormat))
			}
		})
	})
}

func newTokenDeleteCommand(g *globalOptions) *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Aliases: []string{"rm"}, Short: "Make a token unusable", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			_, err = c.Cluster.DeleteToken(cmd.Context(), &pb.DeleteTokenRequest{Id: a[0]})
			return err
		},
	}
}
