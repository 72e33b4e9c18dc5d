package kbuild

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/scenarios"
)

// sectionArgs are what make is told so that each function of a kernel without LTO has a
// section of its own; nil with LTO, which sees to that itself.
//
// CFLAGS_KERNEL is what built-in code is compiled with. The linker script takes the
// sections only where it knows of them: up to 6.18 for LTO and dead-code elimination,
// so it is told the latter, and nothing else is. The command line takes the place of
// the makefile's own flags for it (arch/x86/kernel/Makefile).
func sectionArgs(source, objtree string, a *arch.Arch) ([]string, error) {
	config, err := os.ReadFile(filepath.Join(objtree, ".config"))
	if err != nil {
		return nil, err
	}
	setting := settingIn(config)
	if setting("LTO_CLANG") == "y" || setting("LTO_CLANG_THIN") == "y" || setting("LTO_CLANG_FULL") == "y" {
		return nil, nil
	}
	args := []string{"CFLAGS_KERNEL=-ffunction-sections"}
	script, err := os.ReadFile(filepath.Join(source, "include/asm-generic/vmlinux.lds.h"))
	if os.IsNotExist(err) {
		return args, nil
	} else if err != nil {
		return nil, err
	}
	if bytes.Count(script, []byte("#define TEXT_MAIN")) > 1 {
		args = append(args, "CPPFLAGS_vmlinux.lds=-U"+a.Name+" -DCONFIG_LD_DEAD_CODE_DATA_ELIMINATION")
	}
	return args, nil
}

// checkWarnings refuses a configuration in which a section for each function is an error
// at the end of the build: of a weak function that another overrides GCC leaves the
// section, in which objtool finds code that nothing reaches, and says so.
func (p *Build) checkWarnings() error {
	if p.sections == nil || p.GCC == "" {
		return nil
	}
	config, err := os.ReadFile(filepath.Join(p.Objtree, ".config"))
	if err != nil {
		return err
	}
	if settingIn(config)("OBJTOOL_WERROR") != "y" {
		return nil
	}
	return host.Hint(errors.New("OBJTOOL_WERROR makes errors of what objtool says of GCC's kernels with a section for each function"),
		"set OBJTOOL_WERROR=n: under kernel.set of a scenario, or in the tree's configuration")
}

// compilerOf is the compiler of a kernel, as kernel.compiler names it, with what its
// name begins with on this machine: of a finished build, the one that made it.
func compilerOf(k scenarios.Kernel) string {
	if k.Build == "" {
		if a, err := arch.Of(k.Arch); err == nil && k.Compiler != "" {
			return a.Cross() + k.Compiler
		}
		return k.Compiler
	}
	config, err := os.ReadFile(filepath.Join(k.Build, ".config"))
	if err != nil {
		return "" // whoever takes the build says what is wrong with it
	}
	setting := settingIn(config)
	if setting("CC_IS_GCC") != "y" {
		return ""
	}
	program, _, _ := strings.Cut(strings.Trim(setting("CC_VERSION_TEXT"), `"`), " ")
	return filepath.Base(program)
}
