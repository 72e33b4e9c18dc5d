package seeds

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"unlucky/layout"
)

// baselineVersion is that of the files that hold the layout of a baseline. Those
// of version 1 do not say what the linker script aligns and fixes.
const baselineVersion = 2

// baseline is the layout of a kernel's baseline as a file: JSON, compressed by
// gzip. With it the folder of a sweep says by itself where each function was in
// each layout of its journal.
type baseline struct {
	Unlucky  int              `json:"unlucky"` // baselineVersion
	Object   string           `json:"object"`  // digest of vmlinux.o
	Sections []layout.Section `json:"sections"`
}

// BaselinePath is the file with the baseline's layout of a kernel, given by the
// digest of its vmlinux.o, in a sweep's folder.
func BaselinePath(dir, object string) string {
	return filepath.Join(dir, fmt.Sprintf("layout-%.12s.json.gz", object))
}

// SaveBaseline keeps the baseline's layout of a kernel in the store's folder.
// It is written once (one of an earlier version anew), atomically, and is on the disk when it returns. A kernel
// whose file says otherwise is an error: the linker script is not part of
// vmlinux.o, and layouts of another script are other layouts.
func (s *Store) SaveBaseline(object string, sections []layout.Section) error {
	path := BaselinePath(s.dir, object)
	switch have, err := readBaseline(s.dir, object); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case have.Unlucky == baselineVersion && slices.Equal(have.Sections, sections):
		return nil
	case have.Unlucky == baselineVersion || !slices.Equal(unscripted(have.Sections), unscripted(sections)):
		return fmt.Errorf("%s: this kernel's baseline is laid out otherwise (another linker script?), so its layouts are others; use another -o", path)
	}
	var data bytes.Buffer
	w := gzip.NewWriter(&data)
	err := errors.Join(json.NewEncoder(w).Encode(baseline{baselineVersion, object, sections}), w.Close())
	if err == nil {
		err = writeFile(path, data.Bytes())
	}
	if err != nil {
		return fmt.Errorf("save the baseline's layout: %w", err)
	}
	return nil
}

// ReadBaseline reads what SaveBaseline has written into the folder dir. The
// error is an [os.ErrNotExist] where it has written nothing there.
func ReadBaseline(dir, object string) ([]layout.Section, error) {
	b, err := readBaseline(dir, object)
	return b.Sections, err
}

func readBaseline(dir, object string) (b baseline, err error) {
	path := BaselinePath(dir, object)
	f, err := os.Open(path)
	if err != nil {
		return b, fmt.Errorf("the baseline's layout: %w", err)
	}
	defer f.Close()
	b, err = decodeBaseline(f)
	if err == nil && b.Object != object {
		err = fmt.Errorf("it is of another vmlinux.o (%.12s)", b.Object)
	}
	if err != nil {
		return baseline{}, fmt.Errorf("%s: %w; remove it and run its sweep again, which writes it anew", path, err)
	}
	return b, nil
}

// unscripted are sections as version 1 has them.
func unscripted(sections []layout.Section) []layout.Section {
	out := slices.Clone(sections)
	for i := range out {
		out[i].ScriptAlign, out[i].Pin = 0, 0
	}
	return out
}

// guessScript makes sections of version 1 what they are by today's: where one
// stands behind the place that its own alignment gives, the script aligns it.
func guessScript(sections []layout.Section) {
	for i := 1; i < len(sections); i++ {
		s, before := &sections[i], sections[i-1]
		if s.Output != before.Output {
			continue
		}
		end, align := before.Address+before.Size, max(s.Align, 1)
		for layout.AlignUp(end, align) != s.Address && align < 1<<21 {
			align *= 2
		}
		switch {
		case layout.AlignUp(end, align) != s.Address:
			s.Pin = i + 1
		case align > s.Align:
			s.ScriptAlign = align
		}
	}
}

func decodeBaseline(r io.Reader) (b baseline, err error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return b, fmt.Errorf("not a layout that unlucky has saved: %w", err)
	}
	data, err := io.ReadAll(z) // to the end, where the checksum is
	if err != nil {
		return b, err
	}
	var v struct{ Unlucky int }
	if err := json.Unmarshal(data, &v); err == nil && v.Unlucky > baselineVersion {
		return b, fmt.Errorf("written by a newer unlucky (version %d, this one knows %d)", v.Unlucky, baselineVersion)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return b, err
	}
	if _, err := d.Token(); err != io.EOF {
		return b, errors.New("something follows the layout")
	}
	for i, s := range b.Sections {
		for _, align := range []uint64{s.Align, s.ScriptAlign} {
			if align&(align-1) != 0 {
				return b, fmt.Errorf("section %s: its alignment, %d, is no power of two", s.Name, align)
			}
		}
		if s.Pin < 0 || s.Pin > i+1 {
			return b, fmt.Errorf("section %s: its place hangs on section %d, which does not stand before it", s.Name, s.Pin)
		}
		if s.Group > 0 && s.Index <= 0 {
			return b, fmt.Errorf("section %s: it is in group %d, and not in the object", s.Name, s.Group)
		}
	}
	if b.Unlucky < 1 || len(b.Sections) == 0 {
		return b, errors.New("there is no layout in it")
	}
	if b.Unlucky == 1 {
		guessScript(b.Sections)
	}
	return b, nil
}
