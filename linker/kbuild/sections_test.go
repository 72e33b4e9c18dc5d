package kbuild

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unlucky/arch"
	"unlucky/host"
)

// What make is told, and refused, hangs on the configuration and the compiler.
func TestSections(t *testing.T) {
	for _, test := range []struct {
		name, config, script, gcc string
		args                      string
		refused                   bool
	}{
		{"ThinLTO", "CONFIG_LTO_CLANG_THIN=y\nCONFIG_OBJTOOL_WERROR=y\n", "#define TEXT_MAIN .text\n#define TEXT_MAIN .text .text.[0-9a-zA-Z_]*\n", "", "", false},
		{"none, to 6.18", "CONFIG_LTO_NONE=y\n", "#define TEXT_MAIN .text\n#define TEXT_MAIN .text .text.[0-9a-zA-Z_]*\n", "12.2.0",
			"CFLAGS_KERNEL=-ffunction-sections CPPFLAGS_vmlinux.lds=-Ux86_64 -DCONFIG_LD_DEAD_CODE_DATA_ELIMINATION", false},
		{"none, from 6.19 on", "CONFIG_LTO_NONE=y\n", "#define TEXT_MAIN .text .text.[0-9a-zA-Z_]*\n", "12.2.0", "CFLAGS_KERNEL=-ffunction-sections", false},
		{"objtool's warnings are errors, GCC", "CONFIG_OBJTOOL_WERROR=y\n", "", "14.2.0", "CFLAGS_KERNEL=-ffunction-sections", true},
		{"objtool's warnings are errors, clang", "CONFIG_OBJTOOL_WERROR=y\n", "", "", "CFLAGS_KERNEL=-ffunction-sections", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := NewBuild(t.TempDir(), Toolchain{GCC: test.gcc})
			for path, text := range map[string]string{
				filepath.Join(p.Objtree, ".config"):                          test.config,
				filepath.Join(p.Source, "include/asm-generic/vmlinux.lds.h"): test.script,
			} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			if p.sections, err = sectionArgs(p.Source, p.Objtree, arch.X86_64); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.sections, " "); got != test.args {
				t.Errorf("make is told %q, want %q", got, test.args)
			}
			err = p.checkWarnings()
			var h *host.HintError
			if test.refused != (err != nil) || err != nil && (!errors.As(err, &h) || !strings.Contains(h.Hint, "OBJTOOL_WERROR=n")) {
				t.Errorf("error %v", err)
			}
		})
	}
}
