package linker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"unlucky/layout"
)

// WithDebug links a plan once more, of the build's whole vmlinux.o: with the debug
// information that Build.Linked leaves out, for people and debuggers. image is what Link
// has made of the plan, whose code it must have. It returns the path of the ELF file, which is
// there until the worker is closed; empty where nothing was left out.
func (w *Worker) WithDebug(ctx context.Context, plan layout.Plan, image Image) (path string, err error) {
	p := w.kernel
	whole := filepath.Join(p.Objtree, "vmlinux.o")
	if p.packed != nil || p.object.path == whole {
		return "", nil
	}
	sections, err := p.baseline(ctx)
	if err != nil {
		return "", err
	}
	k := &Kernel{Build: p.Build, By: Script, flat: p.flat, layout: slices.Clone(sections)}
	if k.object, err = openObject(whole); err != nil {
		return "", err
	}
	for i, s := range k.layout {
		k.layout[i].Index = k.object.index[s.Name]
	}
	if w.debug, err = k.NewWorker(); err != nil {
		return "", err
	}
	debug, err := w.debug.Link(ctx, plan)
	if err != nil {
		return "", err
	}
	same, err := sameText(debug.VMLinux, image.VMLinux)
	if err == nil && !same {
		err = errors.New("with debug information it has other code")
	}
	return debug.VMLinux, err
}

// sameText tells whether two images have the same text at the same place.
func sameText(a, b string) (bool, error) {
	var text [2][]byte
	var at [2]uint64
	for i, path := range []string{a, b} {
		f, err := openELF(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		s := f.Section(".text")
		if s == nil {
			return false, fmt.Errorf("%s has no .text", path)
		}
		if text[i], err = sectionBytes(s); err != nil {
			return false, err
		}
		at[i] = s.Addr
	}
	return at[0] == at[1] && bytes.Equal(text[0], text[1]), nil
}
