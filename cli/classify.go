package cli

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"

	"unlucky/qemu/oops"
	"unlucky/report"
)

func classify(f *flag.FlagSet) *command {
	asJSON := f.Bool("json", false, "print an object a console: title, kind, and where the console has them the function\nblamed, its module, the file and file_line of the source, the task, the kernel's\nversion; and the line that the report begins with")
	warnings := f.Bool("warnings", false, "count reports that the kernel goes on after by design: WARNINGs, lockdep's (possible\ndeadlock, inconsistent lock state, suspicious RCU usage ...), kmemleak's, DMA-API's;\nthe one that a kernel with panic_on_warn dies of always counts")
	return &command{
		args: "FILE...|-", min: 1, max: math.MaxInt,
		summary: "print the crash titles of console logs, a line each",
		examples: []string{
			"unlucky classify console.log",
			"ssh board dmesg | unlucky classify -json -",
		},
		run: func(_ context.Context, c call) error {
			for _, name := range c.args {
				page, err := classifyFile(name, c.in, *warnings)
				if err != nil {
					return err
				}
				switch {
				case *asJSON && len(c.args) > 1:
					err = json.NewEncoder(c.out).Encode(struct {
						Console string `json:"console"`
						oops.Report
					}{name, page})
				case *asJSON:
					err = json.NewEncoder(c.out).Encode(page)
				case len(c.args) > 1:
					_, err = fmt.Fprintf(c.out, "%s\t%s\n", report.Printable(name), report.Printable(page.Title))
				default:
					_, err = fmt.Fprintln(c.out, report.Printable(page.Title))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// classifyFile reads a console, or in for "-". Where it shows no crash the title
// says so.
func classifyFile(name string, in io.Reader, warnings bool) (oops.Report, error) {
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return oops.Report{}, err
		}
		defer file.Close()
		in = file
	}
	c := oops.NewClassifier(warnings)
	if _, err := io.Copy(c, in); err != nil {
		return oops.Report{}, fmt.Errorf("reading %s: %w", name, err)
	}
	c.Write([]byte("\n")) // the last line may lack its end
	report, crashed := c.Report()
	if !crashed {
		report.Title = "no crash"
	}
	return report, nil
}
