package cli

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"

	"unlucky/linker/kbuild"
)

// patch is the only command that writes to a kernel tree.
func patch(f *flag.FlagSet) *command {
	revert := f.Bool("revert", false, "give back the original script: its bytes, mode and time")
	return &command{
		args: "DIR", min: 1, max: 1,
		summary: "patch the scripts/link-vmlinux.sh of a kernel tree, for plain make",
		examples: []string{
			"unlucky patch ~/src/linux",
			"unlucky patch -revert ~/src/linux",
		},
		run: func(_ context.Context, c call) error {
			script := filepath.Join(c.args[0], "scripts/link-vmlinux.sh")
			if *revert {
				changed, err := kbuild.Revert(c.args[0])
				if err == nil {
					fmt.Fprintf(c.out, "%s: %s\n", script, map[bool]string{
						true: "reverted; make sees no change, so remove vmlinux and vmlinux.unstripped if they were linked with a seed", false: "was not patched"}[changed])
				}
				return err
			}
			changed, err := kbuild.Patch(c.args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "%[1]s: %[2]s\nnext, for example (make links again only if vmlinux is gone):\n  rm -f %[3]s/vmlinux %[3]s/vmlinux.unstripped && make -C %[3]s LLVM=1 UNLUCKY_SEED=7 vmlinux\n",
				script, map[bool]string{true: "patched", false: "was patched already"}[changed], c.args[0])
			return nil
		},
	}
}
