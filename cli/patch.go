package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"

	"unlucky/linker/kbuild"
)

// patch is the only command that writes to a kernel tree.
func patch(_ context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("patch", flag.ContinueOnError)
	revert := f.Bool("revert", false, "give back the original script: its bytes, mode and time")
	rest, err := parse(f, args, out, "patch [-revert] DIR", 1, 1)
	if err != nil {
		return err
	}
	script := filepath.Join(rest[0], "scripts/link-vmlinux.sh")
	if *revert {
		changed, err := kbuild.Revert(rest[0])
		if err == nil {
			fmt.Fprintf(out, "%s: %s\n", script, map[bool]string{
				true: "reverted; make sees no change, so remove vmlinux and vmlinux.unstripped if they were linked with a seed", false: "was not patched"}[changed])
		}
		return err
	}
	changed, err := kbuild.Patch(rest[0])
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%[1]s: %[2]s\nnext, for example (make links again only if vmlinux is gone):\n  rm -f %[3]s/vmlinux %[3]s/vmlinux.unstripped && make -C %[3]s LLVM=1 UNLUCKY_SEED=7 vmlinux\n",
		script, map[bool]string{true: "patched", false: "was patched already"}[changed], rest[0])
	return nil
}
