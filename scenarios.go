package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"unlucky/scenarios"
)

func listScenarios(_ context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("scenarios", flag.ContinueOnError)
	rest, err := parse(f, args, out, "scenarios [show NAME]", 0, 2)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		if rest[0] != "show" || len(rest) != 2 {
			return usageError{fmt.Errorf("usage: unlucky scenarios [show NAME]")}
		}
		source, err := scenarios.Source(rest[1])
		if err != nil {
			return err
		}
		_, err = out.Write(source)
		return err
	}
	for _, s := range scenarios.Builtin() {
		fmt.Fprintf(out, "%s\n%s\n", s.Name, indent(s.Description))
	}
	fmt.Fprintf(out, "\nnext, for example:\n  unlucky sweep kcfi-seal -seeds 1:64\n  unlucky scenarios show kcfi-seal >my.yaml\n")
	return nil
}
