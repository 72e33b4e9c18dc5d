package cli

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"unlucky/linker/kbuild"
)

func clean(_ context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("clean", flag.ContinueOnError)
	keep := f.String("keep", "0", "`size` of the kernels to keep, such as 10GiB; the least recently used go first")
	if _, err := parse(f, args, out, "clean [-keep SIZE]", 0, 0); err != nil {
		return err
	}
	bytes, err := humanize.ParseBytes(*keep)
	if err != nil {
		return usageError{fmt.Errorf("-keep %s: want a size such as 10GiB", *keep)}
	}
	removed, err := kbuild.Clean(kbuild.CacheDir(), int64(bytes))
	for _, k := range removed {
		fmt.Fprintf(out, "removed %s (%s)\n", k.Dir, humanize.IBytes(uint64(k.Bytes)))
	}
	if len(removed) == 0 && err == nil {
		fmt.Fprintf(out, "nothing to remove in %s\n", kbuild.CacheDir())
	}
	return err
}
