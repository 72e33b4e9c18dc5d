package cli

import (
	"context"
	"flag"
	"fmt"

	"unlucky/linker/kbuild"
	"unlucky/report"
)

// fetch prints the path of a kernel's source package, which it fetches if it is
// not here. A sweep does the same by itself.
func fetch(f *flag.FlagSet) *command {
	return &command{
		args: "PACKAGE[=VERSION]", min: 1, max: 1, long: true,
		summary: "fetch a kernel's source package, as a sweep does by itself, and print its path",
		examples: []string{
			"unlucky fetch linux-source-6.12",
			"unlucky fetch linux-source     # the newest",
		},
		run: func(ctx context.Context, c call) error {
			if !kbuild.IsSource(c.args[0]) {
				return usageError{fmt.Errorf("fetch %s: it takes linux-source-X.Y, linux-source-X.Y=VERSION, or linux-source for the newest", report.Printable(c.args[0]))}
			}
			p, err := kbuild.FetchPackage(ctx, kbuild.CacheDir(), c.args[0], c.scr.progress)
			c.scr.done()
			if err != nil {
				return err
			}
			c.scr.note("%s, %s", p, p.From())
			_, err = fmt.Fprintln(c.out, p.Tarball)
			return err
		},
	}
}
