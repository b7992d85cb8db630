package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// run executes a command line and returns the exit code.
func run(ctx context.Context, a *app, args []string) int {
	cmd := newRoot(a)
	cmd.SetArgs(args)
	cmd.SetIn(a.in)
	cmd.SetOut(a.out)
	cmd.SetErr(a.errOut)
	if err := cmd.ExecuteContext(ctx); err != nil {
		if a.output != "json" && a.output != "jsonl" {
			a.output = "table"
		}
		return a.report(err)
	}
	return exitOK
}

// newRoot builds the command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "flotilla",
		Short: "A durable, replicated, range-sharded key-value store",
		Long: `flotilla runs and uses a durable, replicated, range-sharded key-value store.

  flotilla demo                     see it form a cluster, lose a node and lose nothing
  flotilla dev --dir ./data         a cluster on this machine that stays
  flotilla kv put user/1 ada        write to it
  flotilla cluster status           look at it`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.timeout <= 0 {
				return usageError("--timeout %s: must be more than 0", a.timeout)
			}
			return a.checkOutput()
		},
	}
	f := root.PersistentFlags()
	f.StringSliceVar(&a.addrs, "addr", nil, "client addresses of the cluster, HOST:PORT[,...] (env FLOTILLA_ADDR; default "+defaultAddr+")")
	f.StringVarP(&a.output, "output", "o", "table", "output format: table, json or jsonl")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
	f.BoolVar(&a.quiet, "quiet", false, "print data and errors only")
	f.BoolVar(&a.noColor, "no-color", false, "print without colours (also: NO_COLOR)")
	plant(a, root)
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	group(root, newDemo(a), newDev(a), newServe(a), newKV(a), newCluster(a), newNode(a), newShard(a), newBackup(a), newSnapshot(a), newBench(a), newSim(a), newCheck(a), newConfig(a), newVersion(a))
	unknown := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknown(cmd, args)
	}
	return root
}

// clientFlags adds the flag that only commands with a connection have.
func clientFlags(a *app, cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&a.clusterID, "cluster-id", "", "refuse to talk to any other cluster than this one")
	cmd.PersistentFlags().StringVar(&a.tls.CA, "tls-ca", "", "PEM file with the authorities of the nodes' certificates (env FLOTILLA_TLS_CA)")
	cmd.PersistentFlags().StringVar(&a.tls.Cert, "tls-cert", "", "PEM file with the certificate of this client (env FLOTILLA_TLS_CERT)")
	cmd.PersistentFlags().StringVar(&a.tls.Key, "tls-key", "", "PEM file with its private key (env FLOTILLA_TLS_KEY)")
	return cmd
}

func lines(s ...string) string { return strings.Join(s, "\n") }
