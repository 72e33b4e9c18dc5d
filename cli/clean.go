package cli

import (
	"context"
	"flag"
	"fmt"

	"github.com/dustin/go-humanize"

	"unlucky/linker/kbuild"
)

func clean(f *flag.FlagSet) *command {
	keep := f.String("keep", "0", "`size` of the kernels to keep, such as 10GiB; the least recently used go first")
	return &command{
		summary:  "remove the prepared kernels and the sources fetched for them",
		examples: []string{"unlucky clean -keep 5GiB"},
		run: func(_ context.Context, c call) error {
			bytes, err := humanize.ParseBytes(*keep)
			if err != nil {
				return usageError{fmt.Errorf("-keep %s: want a size such as 10GiB", *keep)}
			}
			removed, err := kbuild.Clean(kbuild.CacheDir(), int64(bytes))
			for _, k := range removed {
				fmt.Fprintf(c.out, "removed %s (%s)\n", k.Dir, humanize.IBytes(uint64(k.Bytes)))
			}
			if len(removed) == 0 && err == nil {
				fmt.Fprintf(c.out, "nothing to remove in %s\n", kbuild.CacheDir())
			}
			return err
		},
	}
}
