package kbuild

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gofrs/flock"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/scenarios"
)

// A kernel is always built in a direct subfolder of its source, so that kbuild
// calls the source "..": ThinLTO derives names (.llvm.HASH) from the path of a
// source file, and with a relative path two builds in two folders are equal.
// The source is one of these, and none of them writes to what the user has:
//   - a Debian source package, unpacked
//   - a clean tree: a folder of links to its entries
//   - a tree that was built in place, or that is to be patched: a copy of its
//     source files

// unpack extracts a Debian kernel tarball into the folder to, which must not
// exist; to appears only when it is complete and patched.
func unpack(ctx context.Context, tarball, to string, patches []scenarios.Patch, progress Progress) error {
	in, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	part := to + ".part"
	if err := errors.Join(os.RemoveAll(part), os.MkdirAll(part, 0o755)); err != nil {
		return err
	}
	read := &ProgressReader{Reader: in, Report: func(n int64) {
		progress("unpacking "+filepath.Base(tarball)+" (about 20 s)", n, info.Size())
	}}
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, "tar", "-xJf", "-", "-C", part, "--strip-components=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, &log, &log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("unpacking %s: %w%s", tarball, err, host.LastLines(log.Bytes(), 5))
	}
	if err := applyPatches(ctx, part, patches, progress); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// copyPrepared makes the source and its build a copy of those of a prepared
// kernel that differs by k's last patches only, and brings these to the state that
// k wants: make then compiles what they touch, and its vmlinux.o is the one that
// it makes from scratch. Where the cache has no such kernel it does nothing.
func (p *Build) copyPrepared(ctx context.Context, k scenarios.Kernel, progress Progress) (done bool, err error) {
	for _, patches := range nearest(k.Patches) {
		other := k
		other.Patches = patches
		from, err := locate(ctx, filepath.Dir(p.Dir), other)
		if err != nil {
			return false, err
		}
		s, err := from.ReadState()
		if err != nil {
			continue
		}
		lock := flock.New(filepath.Join(from.Dir, "lock")) // against being removed
		if free, err := lock.TryRLock(); err != nil || !free {
			continue
		}
		defer lock.Unlock()
		if digest, err := FileDigest(filepath.Join(from.Objtree, "vmlinux.o")); err != nil || digest != s.Object {
			continue // damaged
		}
		same := 0
		for same < len(patches) && patches[same] == k.Patches[same] {
			same++
		}
		var files []string
		for _, patch := range k.Patches[same:] {
			files = append(files, patch.File)
		}
		progress("copying the prepared kernel that differs by "+strings.Join(files, ", ")+" (seconds to a minute)", 0, 0)
		part := p.Source + ".part"
		if err := os.RemoveAll(part); err != nil {
			return false, err
		}
		if _, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), "cp", "-a", "--reflink=auto", from.Source, part); err != nil {
			return false, err
		}
		if err := applyPatches(ctx, part, k.Patches[same:], progress); err != nil {
			return false, err
		}
		return true, os.Rename(part, p.Source)
	}
	return false, nil
}

// nearest are the patches of the kernels to begin with, the nearest first: those
// with the last patch in another state, or without it.
func nearest(patches []scenarios.Patch) (out [][]scenarios.Patch) {
	for n := len(patches) - 1; n >= 0; n-- {
		without := append([]scenarios.Patch(nil), patches[:n]...) // nil, as in a scenario without any
		for _, want := range []string{scenarios.Applied, scenarios.IfFits, scenarios.Absent} {
			if other := patches[n]; other.Want != want {
				other.Want = want
				out = append(out, append(slices.Clip(without), other))
			}
		}
		out = append(out, without)
	}
	return out
}

type ProgressReader struct {
	Reader io.Reader
	n      int64
	Report func(int64)
}

func (p *ProgressReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.n += int64(n)
	p.Report(p.n)
	return n, err
}

// applyPatches brings the source to the state that each patch wants, whichever
// it is in. progress is told what does not fit and need not.
func applyPatches(ctx context.Context, source string, patches []scenarios.Patch, progress Progress) error {
	for _, p := range patches {
		run := func(args ...string) error {
			var log bytes.Buffer
			cmd := exec.CommandContext(ctx, "patch", append([]string{"-p1", "--batch", "--no-backup-if-mismatch", "--reject-file=-"}, args...)...)
			cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = source, strings.NewReader(p.Text), &log, &log
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%w%s", err, host.LastLines(log.Bytes(), 6))
			}
			return nil
		}
		there, missing := []string{"--reverse", "--force"}, []string{"--forward"}
		if p.Want == scenarios.Absent {
			there, missing = missing, there
		}
		if run(append(there, "--dry-run")...) == nil {
			continue // already as wanted
		}
		if p.Want == scenarios.IfFits && run(append(missing, "--dry-run")...) != nil {
			progress("leaving out "+p.File+", which does not fit this kernel", 0, 0)
			continue
		}
		if err := run(missing...); err != nil {
			err = fmt.Errorf("patch %s (wanted: %s) does not fit this kernel: %w", p.File, p.Want, err)
			if p.Tested != "" {
				err = host.Hint(err, "the last version that it is known to fit is %s", p.Tested)
			}
			return err
		}
	}
	return nil
}

// builtInPlace names what a build left in a source tree, and "" for a clean
// one: the test that kbuild makes before it takes a tree for O=.
func builtInPlace(tree string, a *arch.Arch) string {
	for _, left := range []string{".config", "include/config", a.Folder() + "/include/generated"} {
		if _, err := os.Stat(filepath.Join(tree, left)); err == nil {
			return left
		}
	}
	return ""
}

// ours tells the folder in a kernel's source that this package made: the
// build. A user's build folder may have the same name, and must not stand
// there.
func ours(name string) bool { return name == BuildName }

// LinkFarm makes source a folder of links to the entries of tree, whatever it
// was before.
func LinkFarm(tree, source string) error {
	if err := os.MkdirAll(source, 0o755); err != nil {
		return err
	}
	if err := removeTop(source, func(fs.DirEntry) bool { return true }); err != nil {
		return err
	}
	entries, err := os.ReadDir(tree)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || ours(e.Name()) { // .git would get into the version
			continue
		}
		if err := os.Symlink(filepath.Join(tree, e.Name()), filepath.Join(source, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeTop removes the entries of source that are not ours and that which
// chooses.
func removeTop(source string, which func(fs.DirEntry) bool) error {
	entries, err := os.ReadDir(source)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if ours(e.Name()) && e.IsDir() || !which(e) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(source, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sourceFiles are the files of a tree that git tracks, or all where no git is and
// nothing was built.
func sourceFiles(ctx context.Context, a *arch.Arch, tree string) (files []string, err error) {
	out, err := host.Output(ctx, tree, host.Environment(os.Getenv("PATH")), "git", "-c", "safe.directory=*", "ls-files", "-z")
	files = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil && slices.Contains(files, "Makefile"): // not another project's, in which the tree lies
		return files, nil
	case builtInPlace(tree, a) != "":
		return nil, host.Hint(fmt.Errorf("%s was built in place, and is no git tree whose files can be copied: %w", tree, cmp.Or(err, errors.New("git tracks no Makefile there"))),
			"run `make mrproper` in a copy of it and give that with -linux, or give the finished build with -build")
	}
	files = nil
	return files, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(tree, path)
		switch {
		case err != nil || d.IsDir() && !ours(rel):
			return err
		case d.IsDir():
			return fs.SkipDir
		}
		files = append(files, rel)
		return nil
	})
}

// copySource makes source a copy of the source files of tree, as they are in the
// working tree. Files that have not changed since the last
// copy are left alone, so that make does not compile them again.
func copySource(ctx context.Context, a *arch.Arch, tree, source string, patches []scenarios.Patch, progress Progress) error {
	files, err := sourceFiles(ctx, a, tree)
	if err != nil {
		return err
	}
	// Through the links of an earlier linkFarm one would compare the tree with itself.
	if err := removeTop(source, func(e fs.DirEntry) bool { return e.Type()&fs.ModeSymlink != 0 }); err != nil {
		return err
	}
	keep := make(map[string]bool, len(files))
	for i, name := range files {
		keep[name] = true
		if i%1000 == 0 {
			progress("copying the source files of "+tree, int64(i), int64(len(files)))
		}
		if err := copyFile(filepath.Join(tree, name), filepath.Join(source, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := removeOthers(source, keep); err != nil {
		return err
	}
	return applyPatches(ctx, source, patches, progress)
}

// removeOthers removes the files of an earlier copy that are tracked no more.
func removeOthers(source string, keep map[string]bool) error {
	return filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(source, path)
		if d.IsDir() {
			if ours(rel) {
				return fs.SkipDir
			}
			return nil
		}
		if !keep[rel] {
			return os.Remove(path)
		}
		return nil
	})
}

// copyFile copies a file or a link with its mode and time, unless the copy
// already has the same size and time.
func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	old, err := os.Lstat(to)
	if err == nil && old.Size() == info.Size() && old.ModTime().Equal(info.ModTime()) && old.Mode() == info.Mode() {
		return nil
	}
	if info.IsDir() { // a git submodule
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, data, info.Mode()), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// CacheFull adds to the error of a full disk how to make room in the cache.
func CacheFull(err error, cache string) error {
	if host.NoSpace(err) {
		err = host.Hint(err, "make room on the disk of %s; unlucky clean removes prepared kernels", cache)
	}
	return err
}
