package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"

	"unlucky/scenarios"
)

func listScenarios(f *flag.FlagSet) *command {
	asJSON := f.Bool("json", false, "print the list as JSON, one scenario a line")
	diff := f.Bool("diff", false, `with show: print only what the scenario adds to the one that it takes over
("from: boot", or "from: ../base.yaml", as seen from the file). A key takes the
place of that one's; but set, try, patches and append are merged item by item,
by the symbol, the file or the parameter, and an empty list takes none over.
name and description are never taken over; one of package, dir and build puts
out the other one's, and so does one of init and rootfs`)
	return &command{
		args: "[show NAME|FILE]", min: 0, max: 2,
		summary: "list the built-in scenarios; or print one as YAML, to copy and edit",
		examples: []string{
			"unlucky scenarios show kcfi-seal >my.yaml",
			"unlucky scenarios show -diff my.yaml",
		},
		run: func(_ context.Context, c call) error {
			if *diff && len(c.args) == 0 {
				return usageError{errors.New("-diff is of one scenario: unlucky scenarios show -diff NAME")}
			}
			if len(c.args) > 0 {
				if c.args[0] != "show" || len(c.args) != 2 || *asJSON {
					return usageError{errors.New("usage: unlucky scenarios [show [-diff] NAME|FILE]")}
				}
				print := scenarios.Source
				if *diff {
					print = scenarios.Added
				}
				source, err := print(c.args[1])
				if err != nil {
					return err
				}
				_, err = c.out.Write(source)
				return err
			}
			for _, s := range scenarios.Builtin() {
				if *asJSON {
					if err := json.NewEncoder(c.out).Encode(struct {
						Name        string `json:"name"`
						Description string `json:"description"`
						Package     string `json:"package"` // of the kernel's source
						CPUs        int    `json:"cpus"`
						Memory      int64  `json:"memory"` // in bytes
						Pass        string `json:"pass"`
						Crash       string `json:"crash,omitempty"`
					}{s.Name, s.Description, s.Kernel.Package, s.Guest.CPUs, int64(s.Guest.Memory), s.Verdict.Pass.String(), s.Verdict.Crash.String()}); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(c.out, "%s\n%s\n", s.Name, indent(s.Description))
			}
			if *asJSON {
				return nil
			}
			fmt.Fprintf(c.out, "\nnext, for example:\n  unlucky sweep kcfi-seal -seeds 1:64\n  unlucky scenarios show kcfi-seal >my.yaml\n")
			return nil
		},
	}
}
