package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
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

func list(f *flag.FlagSet) *command {
	asJSON := f.Bool("json", false, "print them as JSON, one object a line")
	return &command{
		args: "DIR...", min: 1, max: math.MaxInt,
		summary:  "list what sweeps have found, a title a line",
		examples: []string{"unlucky list unlucky.out"},
		run: func(_ context.Context, c call) error {
			all, failed := evidence.ReadResults(c.args, c.scr.note)
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
						if err := json.NewEncoder(c.out).Encode(f); err != nil {
							return err
						}
						continue
					}
					told := strings.Trim(f.Memory()+"; "+f.Answer(), "; ")
					fmt.Fprintf(w, "%s\t%d/%d\t%d/%d\t%s\t%s\t%s\n", f.Scenario, len(f.Layouts), f.Of, f.Crashes, f.Boots, f.Title, f.File, told)
				}
			}
			switch {
			case *asJSON:
			case n > 0:
				w.Flush()
				for line := range strings.Lines(b.String()) {
					io.WriteString(c.out, report.Printable(strings.TrimRight(line, " \n")+"\n"))
				}
			case failed == nil:
				io.WriteString(c.out, "nothing has been found\n")
			}
			return failed
		},
	}
}
