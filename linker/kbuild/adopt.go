package kbuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"unlucky/host"
)

// adopt takes a finished build folder, which is only read. What others are
// using at the same time stays as it is.
func (p *Build) adopt(ctx context.Context, build string, alone bool, progress Progress) error {
	p.Objtree = build
	source, err := sourceOf(build)
	if err == nil {
		err = checkFinished(build)
	}
	if err == nil && exists(filepath.Join(build, "vmlinux.o")) { // open says what it means that there is none
		var n int
		n, err = sectionsOf(filepath.Join(build, "vmlinux.o"))
		p.units = n < leastSections
	}
	if p.units {
		p.Objtree = filepath.Join(p.Source, BuildName)
	}
	if err != nil || !alone {
		return err
	}
	if err := LinkFarm(source, p.Source); err != nil {
		return err
	}
	script, err := patchedScript(source)
	if err != nil {
		return err
	}
	if err := replaceFile(p.Script(), script, 0o755); err != nil {
		return err
	}
	if !exists(filepath.Join(build, "vmlinux.o")) {
		return nil // open says what that means
	}
	if p.units {
		if err := p.byUnits(ctx, build, progress); err != nil {
			return err
		}
	}
	return p.WriteState()
}

// sourceOf finds the source tree of a finished build folder.
func sourceOf(build string) (string, error) {
	data, err := os.ReadFile(filepath.Join(build, "Makefile"))
	if err != nil {
		return "", host.Hint(fmt.Errorf("%s is no finished kernel build: %w", build, err), "give the folder that holds vmlinux.o (O=, or the tree itself)")
	}
	m := includeLine.FindSubmatch(data)
	if m == nil {
		return build, nil
	}
	makefile := string(m[1])
	if !filepath.IsAbs(makefile) {
		makefile = filepath.Join(build, makefile)
	}
	source, err := filepath.EvalSymlinks(filepath.Dir(makefile))
	if err == nil {
		_, err = os.Stat(makefile)
	}
	if err != nil {
		return "", host.Hint(fmt.Errorf("the source of the build in %s has moved: its Makefile includes %s: %w", build, makefile, err),
			"put the source back there, or run make with O=%s from where it is now", build)
	}
	return source, nil
}

// includeLine is what kbuild writes into the Makefile of an O= folder.
var includeLine = regexp.MustCompile(`(?m)^(?:export KBUILD_OUTPUT.*\n)?include ([^\s$]+/Makefile)$`)

// checkFinished refuses a build whose vmlinux.o was written after make has noted
// how: a make that was interrupted, or a change by hand, which the kernel's own
// vmlinux does not have.
func checkFinished(build string) error {
	object, err := os.Stat(filepath.Join(build, "vmlinux.o"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // open says what that means
	} else if err != nil {
		return err
	}
	note := filepath.Join(build, ".vmlinux.o.cmd")
	noted, err := os.Stat(note)
	if err != nil || !object.ModTime().After(noted.ModTime()) {
		return nil
	}
	return host.Hint(fmt.Errorf("%s is newer than %s, in which make notes how it was made", filepath.Join(build, "vmlinux.o"), note),
		"run make in %s again; to copy a build use cp -a, which keeps times", build)
}

// checkLinker refuses a build that another version of lld has linked: its
// images would be others than the build's own.
func checkLinker(build, lld string) error {
	config, err := os.ReadFile(filepath.Join(build, ".config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // make says what that means
	} else if err != nil {
		return err
	}
	m := lldVersion.FindSubmatch(config)
	if m == nil {
		return nil // linked by another linker, of which useLinker speaks
	}
	n, _ := strconv.Atoi(string(m[1]))
	if made := fmt.Sprintf("%d.%d.%d", n/10000, n/100%100, n%100); n > 0 && made != lld {
		return host.Hint(fmt.Errorf("the build in %s was made by lld %s, and the lld here is %s", build, made, lld),
			"install lld-%d, put it first on the PATH, or run make in %s again", n/10000, build)
	}
	return nil
}

// lldVersion is what kconfig notes of the linker, 220108 for 22.1.8; 0 where it is
// not lld (scripts/ld-version.sh).
var lldVersion = regexp.MustCompile(`(?m)^CONFIG_LLD_VERSION=(\d+)$`)
