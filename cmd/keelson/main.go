// Command keelson is replicated block storage: the daemon, its child processes, and the
// commands that people type. One file per subcommand; docs/ops/cli.md has the exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/spec"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitFailure     = 1
	exitUsage       = 2 // the command, or what it asks, makes no sense
	exitNotFound    = 3
	exitConflict    = 4 // it exists, is in use, or its state forbids it
	exitUnavailable = 5 // node or metadata can't be reached
	exitImpossible  = 6 // no placement, no space
	exitDenied      = 7 // certificate or token
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server.Version = version
	root := newRootCommand()
	if isPlugin(os.Args[0]) {
		root = newPluginCommand()
	}
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "keelson: "+message(err))
	}
	os.Exit(exitCode(err))
}

func newRootCommand() *cobra.Command {
	g := &globalOptions{}
	root := &cobra.Command{
		Use:           "keelson",
		Short:         "Replicated block storage on the disks of the cluster's own nodes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	group(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&g.config, "config", os.Getenv("KEELSON_CONFIG"), "configuration file (KEELSON_CONFIG; default "+server.DefaultConfigFile+")")
	root.PersistentFlags().StringVar(&g.dataDir, "data-dir", os.Getenv("KEELSON_DATA_DIR"), "the node's data directory (KEELSON_DATA_DIR; default from the configuration)")
	root.PersistentFlags().StringVar(&g.server, "server", os.Getenv("KEELSON_SERVER"), "API to talk to, HOST:PORT or https://HOST:PORT (KEELSON_SERVER; default this node's)")
	root.PersistentFlags().StringVar(&g.token, "token", os.Getenv("KEELSON_TOKEN"), "API token, instead of this node's certificate; needs --server (KEELSON_TOKEN)")
	root.PersistentFlags().StringVar(&g.tokenFile, "token-file", os.Getenv("KEELSON_TOKEN_FILE"), "file that has the API token (KEELSON_TOKEN_FILE)")
	for _, name := range []string{"config", "data-dir", "server", "token", "token-file"} {
		root.PersistentFlags().Lookup(name).DefValue = "" // the help says where it comes from; what is set now is of no use there
	}
	root.AddCommand(
		newServerCommand(g), newPrepareCommand(g), newEtcdCommand(g), newEngineCommand(g), newControlCommand(g), newHolderCommand(g), newGuardCommand(),
		newStatusCommand(g), newReadyCommand(g), newNodeCommand(g), newPoolCommand(g), newVolumeCommand(g), newSnapshotCommand(g), newKeyCommand(g), newCACommand(g), newTokenCommand(g),
		newAPITokenCommand(g), newRecoverCommand(g), newAuditCommand(g), newEventsCommand(g), newDoctorCommand(g), newSupportBundleCommand(g), newKubectlCommand(),
		newSettingsCommand(g), newInstallCommand(), newLabCommand(), newCompletionCommand(), newVersionCommand(),
	)
	return root
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// group makes a command one that only has subcommands: alone it shows its help, and any other word is a usage error.
func group(cmd *cobra.Command, sub ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(sub...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		if len(a) == 0 {
			return cmd.Help()
		}
		err := fmt.Errorf("there is no command %q; see %s --help", a[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(a[0]); len(near) > 0 {
			err = fmt.Errorf("there is no command %q; is %s meant?", a[0], strings.Join(near, " or "))
		}
		return usageError{err}
	}
	cmd.SuggestionsMinimumDistance = 2
	return cmd
}

// args words cobra's check of arguments as a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usageError{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// message words an error for people.
func message(err error) string {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err.Error()
	}
	if errors.Is(err, pki.ErrOtherCluster) || errors.Is(err, pki.ErrAPITokenCluster) {
		return ce.Message()
	}
	if ce.Code() == connect.CodeUnavailable && !connect.IsWireError(ce) {
		return fmt.Sprintf("the API can't be reached: %s; is keelson server running there?", ce.Message())
	}
	return ce.Message()
}

func exitCode(err error) int {
	var usage usageError
	var coded codedError
	var invalid *spec.InvalidError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, lab.ErrInvalid):
		return exitUsage
	case errors.Is(err, lab.ErrNoLab), errors.Is(err, lab.ErrNoNode):
		return exitNotFound
	case errors.Is(err, lab.ErrExists), errors.Is(err, lab.ErrNotUp):
		return exitConflict
	case errors.Is(err, pki.ErrOtherCluster), errors.Is(err, pki.ErrAPITokenForm), errors.Is(err, pki.ErrAPITokenCluster):
		return exitDenied
	case errors.Is(err, meta.ErrNotFound):
		return exitNotFound
	case errors.Is(err, server.ErrAlive):
		return exitConflict
	case errors.Is(err, meta.ErrUnavailable):
		return exitUnavailable
	case errors.As(err, &usage), errors.As(err, &invalid):
		return exitUsage
	case errors.Is(err, server.ErrPermanent):
		return server.ExitPermanent
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return exitUsage
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition, connect.CodeAborted:
		return exitConflict
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		return exitUnavailable
	case connect.CodeResourceExhausted:
		return exitImpossible
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return exitDenied
	}
	return exitFailure
}
