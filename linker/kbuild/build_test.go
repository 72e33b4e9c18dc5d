package kbuild

import (
	"strings"
	"testing"
)

func TestScriptArgs(t *testing.T) {
	for _, test := range []struct{ name, cmd string }{
		{"6.1", `cmd_vmlinux := sh ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1";  true`},
		{"6.12", `savedcmd_vmlinux := ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1";  make -f ../arch/x86/Makefile.postlink vmlinux`},
		{"6.17", `savedcmd_vmlinux.unstripped := ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1" "vmlinux.unstripped"; true`},
	} {
		m := linkCommand.FindStringSubmatch(test.cmd)
		if m == nil || !strings.HasPrefix(m[1], `"ld.lld" "-m elf_x86_64" "-z max`) {
			t.Errorf("%s: %q", test.name, m)
		}
	}
}
