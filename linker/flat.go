package linker

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"unlucky/linker/kbuild"
)

// A flat image has what vmlinux has in memory, from its lowest address on, and
// nothing else: arm64's Image, which kbuild has objcopy -O binary make
// (arch/arm64/boot/Makefile). It is made here, so that a packed kernel needs no
// objcopy.

// maxFlat bounds a flat image, in bytes: a defconfig's has a thirtieth of it.
const maxFlat = 1 << 30

// notFlat are sections that kbuild leaves out.
var notFlat = []string{".note", ".note.gnu.build-id", ".comment"}

// flatten is the flat image of an ELF file. Between sections are zeros.
func flatten(f *elf.File) ([]byte, error) {
	var sections []*elf.Section
	low, high := ^uint64(0), uint64(0)
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS || s.FileSize == 0 || slices.Contains(notFlat, s.Name) {
			continue
		}
		sections = append(sections, s)
		low, high = min(low, s.Addr), max(high, s.Addr+s.FileSize)
	}
	if sections == nil || high-low > maxFlat {
		return nil, fmt.Errorf("its sections are no flat image: they are from %#x to %#x", low, high)
	}
	image := make([]byte, high-low)
	for _, s := range sections {
		data, err := sectionBytes(s)
		if err != nil {
			return nil, err
		}
		if s.Addr-low > uint64(len(image)-len(data)) {
			return nil, errors.New("a section ends behind the last address")
		}
		copy(image[s.Addr-low:], data)
	}
	return image, nil
}

// flattenFile is flatten of a file.
func flattenFile(path string) ([]byte, error) {
	f, err := openELF(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return flatten(f.File)
}

// isFlat tells whether what a build boots is the flat image of its vmlinux: its
// makefiles have made the same bytes.
func isFlat(b *kbuild.Build, vmlinux string) bool {
	if b.BootFile() == "" {
		return false
	}
	made, err := os.ReadFile(filepath.Join(b.Objtree, b.BootFile()))
	if err != nil {
		return false // whoever makes a worker says what is wrong
	}
	image, err := flattenFile(filepath.Join(b.Objtree, vmlinux))
	return err == nil && bytes.Equal(image, made)
}

// flatImage makes the flat image of the worker's vmlinux and returns its path.
func (w *Worker) flatImage() (string, error) {
	image, err := flattenFile(w.vmlinux())
	if err != nil {
		return "", err
	}
	path := filepath.Join(w.dir, w.kernel.Image)
	return path, os.WriteFile(path, image, 0o644)
}
