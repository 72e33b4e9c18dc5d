package cli

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"unlucky/arch"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/report"
)

// fetch prints the path of a kernel's source, or of its configuration, which it fetches
// if it is not here. A sweep does the same by itself.
func fetch(f *flag.FlagSet) *command {
	return &command{
		args: "PACKAGE[=VERSION][/FLAVOUR]", min: 1, max: 1, long: true,
		summary: "fetch a kernel's source or configuration, or another architecture's busybox, as a sweep does by itself, and print its path",
		examples: []string{
			"unlucky fetch linux-source-6.12",
			"unlucky fetch linux-source     # the newest",
			"unlucky fetch linux-config-6.12/amd64_none_amd64",
			"unlucky fetch busybox:aarch64  # for guests of arm64",
		},
		run: func(ctx context.Context, c call) error {
			if name, ok := strings.CutPrefix(c.args[0], "busybox:"); ok {
				a, err := arch.Of(name)
				if err != nil {
					return usageError{err}
				}
				path, err := kbuild.FetchBusybox(ctx, kbuild.CacheDir(), a, c.scr.progress)
				c.scr.done()
				if err == nil {
					err = qemu.CheckBusybox(path, a.ELF)
				}
				if err == nil {
					_, err = fmt.Fprintln(c.out, path)
				}
				return err
			}
			if !kbuild.IsSource(c.args[0]) && !kbuild.IsConfig(c.args[0]) {
				return usageError{fmt.Errorf("fetch %s: it takes linux-source-X.Y, linux-source-X.Y=VERSION, linux-source for the newest, linux-config-X.Y/FLAVOUR, or busybox:ARCH", report.Printable(c.args[0]))}
			}
			p, err := kbuild.FetchPackage(ctx, kbuild.CacheDir(), c.args[0], c.scr.progress)
			c.scr.done()
			if err != nil {
				return err
			}
			c.scr.note("%s, %s", p, p.From())
			_, err = fmt.Fprintln(c.out, p.File)
			return err
		},
	}
}
