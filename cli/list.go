package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"

	"unlucky/fuzz/evidence"
	"unlucky/report"
)

// withBaseline says that a number of layouts has the baseline in it, where that was
// tried: a sweep's own report counts seeds.
func withBaseline(tried bool) string {
	if tried {
		return " with the baseline"
	}
	return ""
}

func list(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("list", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print them as JSON, one object a line")
	dirs, err := parse(f, args, out, "list DIR... [flags]", 1, math.MaxInt)
	if err != nil {
		return err
	}
	all, failed := evidence.ReadResults(dirs, newScreen(os.Stderr).note)
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tlayouts, baseline too\tboots\ttitle\tseed file\t")
	n := 0
	for _, r := range all {
		found, err := evidence.Summaries(r)
		failed = errors.Join(failed, err)
		for _, f := range found {
			n++
			if *asJSON {
				if err := json.NewEncoder(out).Encode(f); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(w, "%s\t%d/%d\t%d/%d\t%s\t%s\t%s\n", f.Scenario, len(f.Layouts), f.Of, f.Crashes, f.Boots, f.Title, f.File, f.Answer())
		}
	}
	switch {
	case *asJSON:
	case n > 0:
		w.Flush()
		for line := range strings.Lines(b.String()) {
			io.WriteString(out, report.Printable(strings.TrimRight(line, " \n")+"\n"))
		}
	case failed == nil:
		io.WriteString(out, "nothing has been found\n")
	}
	return failed
}
