package kbuild

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"unlucky/host"
)

// A finished build whose functions have no sections of their own can still be laid out
// anew by its object files: the .text of each is renamed, they are linked into another
// vmlinux.o, and the linker script is made to take those names. The build is only
// read: all that is made is in a folder of links to it.

// leastSections is how many sections of functions a vmlinux.o has that was compiled
// with one for each.
const leastSections = 100

// unitScript is the linker script of such a build, in its folder.
const unitScript = "units.lds"

// sectionsOf counts the sections of functions in a vmlinux.o.
func sectionsOf(object string) (n int, err error) {
	f, err := elf.Open(object)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, err
	} else if err != nil {
		return 0, fmt.Errorf("%s: %w", object, err)
	}
	defer f.Close()
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_EXECINSTR != 0 && strings.HasPrefix(s.Name, ".text.") {
			n++
		}
	}
	return n, nil
}

// unitLink is the link of vmlinux.o, as kbuild notes it: what comes before its archive
// and what follows.
var unitLink = regexp.MustCompile(`(?m)^(?:saved)?cmd_vmlinux\.o := (\S+)( .* -o vmlinux\.o) +--whole-archive vmlinux\.a --no-whole-archive(.*)$`)

// textInput is where a linker script, behind the preprocessor, takes .text.
var textInput = regexp.MustCompile(`\*\(\.text \.text\.fixup\)`)

// byUnits makes p's Objtree a folder of links to the build, with a vmlinux.o whose
// units are the build's object files.
func (p *Build) byUnits(ctx context.Context, build string, progress Progress) error {
	own := filepath.Join(p.Source, BuildName)
	made := filepath.Join(own, "vmlinux.o")
	if done, err := os.Stat(made); err == nil {
		if theirs, err := os.Stat(filepath.Join(build, "vmlinux.o")); err == nil && done.ModTime().After(theirs.ModTime()) && exists(filepath.Join(own, unitScript)) {
			p.Objtree = own
			return nil
		}
	}
	note, err := os.ReadFile(filepath.Join(build, ".vmlinux.o.cmd"))
	if err != nil {
		return err
	}
	m := unitLink.FindSubmatch(note)
	if m == nil {
		return host.Hint(fmt.Errorf("the functions of the build in %s have no sections of their own, and its .vmlinux.o.cmd does not link vmlinux.a", build),
			"make it again with CFLAGS_KERNEL=-ffunction-sections, or give the tree with -linux")
	}
	scriptPath := filepath.Join(build, p.Arch.Folder(), "kernel/vmlinux.lds")
	script, err := os.ReadFile(scriptPath)
	if err != nil {
		return err
	}
	if !bytes.Contains(script, []byte(".text.[0-9a-zA-Z_]*")) {
		if !textInput.Match(script) {
			return fmt.Errorf("%s: no place takes .text in a way that is known", scriptPath)
		}
		script = textInput.ReplaceAll(script, []byte("*(.text .text.unit[0-9]* .text.fixup)"))
	}
	if err := errors.Join(os.RemoveAll(own), os.MkdirAll(own, 0o755)); err != nil {
		return err
	}
	entries, err := os.ReadDir(build)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "vmlinux.o" || e.Name() == ".git" || filepath.Join(build, e.Name()) == p.Source {
			continue
		}
		if err := os.Symlink(filepath.Join(build, e.Name()), filepath.Join(own, e.Name())); err != nil {
			return err
		}
	}
	// Kbuild's own makefile of an O= folder names the source; another folder needs it whole.
	source, err := sourceOf(build)
	if err == nil && source != build {
		err = errors.Join(os.Remove(filepath.Join(own, "Makefile")), os.WriteFile(filepath.Join(own, "Makefile"), []byte("include "+source+"/Makefile\n"), 0o644))
	}
	if err != nil {
		return err
	}
	n, err := p.renameUnits(ctx, build, own, progress)
	if err != nil {
		return err
	}
	progress(fmt.Sprintf("without a section for each function in %s: laid out by its %d object files, which tells whether the layout matters, and not which function; for that make it again with CFLAGS_KERNEL=-ffunction-sections, or give the tree with -linux", build, n), 0, 0)
	link := p.Linker() + string(m[2]) + " --whole-archive @units.txt --no-whole-archive" + string(m[3])
	link = strings.ReplaceAll(link, "--no-warn-rwx-segments", "")
	if _, err := host.Output(ctx, own, host.Environment(p.PATH()), "sh", "-e", "-c", link); err != nil {
		return errors.Join(fmt.Errorf("linking vmlinux.o of renamed object files: %w", err), os.RemoveAll(own))
	}
	p.Objtree = own
	return os.WriteFile(filepath.Join(own, unitScript), script, 0o644)
}

// renameUnits copies the members of vmlinux.a, each with its .text under a name of its
// own, and lists the copies in units.txt. It returns how many there are.
func (p *Build) renameUnits(ctx context.Context, build, own string, progress Progress) (n int, err error) {
	archive := filepath.Join(build, "vmlinux.a")
	if head, err := os.ReadFile(archive); errors.Is(err, fs.ErrNotExist) {
		return 0, host.Hint(fmt.Errorf("the functions of the build in %s have no sections of their own, and its object files are gone", build),
			"make it again with CFLAGS_KERNEL=-ffunction-sections, or give the tree with -linux")
	} else if err != nil {
		return 0, err
	} else if !bytes.HasPrefix(head, []byte("!<thin>\n")) {
		return 0, fmt.Errorf("%s is no thin archive, as kbuild makes them", archive)
	}
	env := host.Environment(p.PATH())
	list, err := host.Output(ctx, build, env, "ar", "t", "vmlinux.a")
	if err != nil {
		return 0, err
	}
	if err := os.Mkdir(filepath.Join(own, "units"), 0o755); err != nil {
		return 0, err
	}
	members := strings.Fields(string(list))
	var names bytes.Buffer
	for i, member := range members {
		progress("renaming the sections of the object files", int64(i), int64(len(members)))
		name := fmt.Sprintf("units/%05d.o", i)
		if _, err := host.Output(ctx, own, env, "objcopy", "--rename-section", fmt.Sprintf(".text=.text.unit%05d", i), filepath.Join(build, member), name); err != nil {
			return 0, err
		}
		fmt.Fprintln(&names, name)
	}
	return len(members), os.WriteFile(filepath.Join(own, "units.txt"), names.Bytes(), 0o644)
}
