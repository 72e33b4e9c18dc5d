package kbuild

import (
	"context"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"unlucky/host"
)

// Linked is the path of the object that layouts are linked of: vmlinux.o, or a copy
// without its debug information, which is made once. That of x86_64_defconfig is most of
// what a link reads and writes, and nothing of it is booted. Where the build has BTF,
// pahole makes that of the debug information in each link, and it stays.
func (p *Build) Linked(ctx context.Context, progress Progress) (string, error) {
	object := filepath.Join(p.Objtree, "vmlinux.o")
	debug, err := hasDebugInfo(object)
	if err != nil || !debug {
		return object, err
	}
	config, err := os.ReadFile(filepath.Join(p.Objtree, "include/config/auto.conf"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil || strings.Contains(string(config), "\nCONFIG_DEBUG_INFO_BTF=y\n") {
		return object, err
	}
	linked := filepath.Join(p.Dir, "linked-"+p.Digest[:12]+".o")
	if exists(linked) {
		return linked, nil
	}
	if progress != nil {
		progress("leaving the debug information out of vmlinux.o", 0, 0)
	}
	part := linked + ".part"
	i := slices.IndexFunc(p.Environment, func(v string) bool { return strings.HasPrefix(v, "OBJCOPY=") })
	if i < 0 {
		return object, nil
	}
	argv := append(strings.Fields(strings.TrimPrefix(p.Environment[i], "OBJCOPY=")), "--strip-debug", object, part)
	if _, err := host.Output(ctx, p.Dir, p.Environment, argv...); err != nil {
		os.Remove(part)
		return "", err
	}
	return linked, os.Rename(part, linked)
}

// hasDebugInfo tells whether an object has DWARF.
func hasDebugInfo(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return f.Section(".debug_info") != nil, nil
}
