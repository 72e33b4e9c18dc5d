package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"unlucky/linker/kbuild"
	"unlucky/report"
)

// fetch prints the path of a kernel's source package, which it fetches if it is
// not here. A sweep does the same by itself.
func fetch(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("fetch", flag.ContinueOnError)
	rest, err := parse(f, args, out, "fetch PACKAGE[=VERSION], such as linux-source-6.12, or linux-source for the newest", 1, 1)
	if err != nil {
		return err
	}
	if !kbuild.IsSource(rest[0]) {
		return usageError{fmt.Errorf("fetch %s: it takes linux-source-X.Y, linux-source-X.Y=VERSION, or linux-source for the newest", report.Printable(rest[0]))}
	}
	scr := newScreen(os.Stderr)
	p, err := kbuild.FetchPackage(ctx, kbuild.CacheDir(), rest[0], scr.progress)
	scr.done()
	if err != nil {
		return err
	}
	scr.note("%s, %s", p, p.From())
	_, err = fmt.Fprintln(out, p.Tarball)
	return err
}
