package linker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"

	"unlucky/arch"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// A packed kernel is one file with all that one pass of the linker takes: a tar
// in zstd, of manifest.json and then of the files that it lists. What stands in
// build/ is the kernel's, the others are the caller's. The same kernel gives the
// same bytes.
//
// Whoever links a packed kernel runs a program of it, sorttable, and lld by its
// arguments: it is to be trusted as a kernel tree is. Its reader bounds what it
// takes of disk and memory all the same, as a file may be damaged.

// packVersion is the form of packed kernels that is written. The one before had no
// templates, and is read.
const packVersion = 2

const manifestName = "manifest.json"

// What a packed kernel may have at most: the objects of a distribution's kernel
// with debug information are a third of that, and a link takes some ten files.
const (
	maxPacked      = 4 << 30 // bytes, unpacked
	maxPackedFiles = 256
	maxManifest    = 1 << 20 // bytes
)

// manifest says what a packed kernel is.
type manifest struct {
	Version int        `json:"unlucky-kernel"`
	Clang   string     `json:"clang,omitempty"` // that compiled it, or else
	GCC     string     `json:"gcc,omitempty"`
	LLD     string     `json:"lld"`
	Object  string     `json:"object"`            // digest of vmlinux.o
	Image   string     `json:"image"`             // digest of the baseline's
	Output  string     `json:"output"`            // the file that the script links
	Flat    string     `json:"flat,omitempty"`    // what is booted, if that is the flat image of it
	Links   [][]string `json:"links"`             // of the script, in their order; one pass is the last
	Made    []string   `json:"made"`              // by the script, for its links
	BTFIDs  string     `json:"btf-ids,omitempty"` // the file with what .BTF_ids holds, if there is such a section
	Sort    []string   `json:"sort"`              // sorttable's call, if there is one
	// Templates are what links by delta without lld, the baseline's first; none where that
	// can't be done. Each is the baseline with a padding.
	Templates []packedTemplate `json:"templates,omitempty"`
	Files     []packedFile     `json:"files"` // sorted by name
}

// packedFile is one file of a packed kernel.
type packedFile struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	Digest  string `json:"sha256"`
	Program bool   `json:"program,omitempty"`
}

// packedTemplate is the image of a template, whose files are named by its number.
type packedTemplate struct {
	Section string `json:"section,omitempty"` // padded before
	Bytes   uint64 `json:"bytes,omitempty"`
}

func (t packedTemplate) plan() (p layout.Plan) {
	if t.Section != "" {
		p.Paddings = []layout.Padding{{Section: t.Section, Bytes: t.Bytes}}
	}
	return p
}

// templateFile is the name of one of the files of a template.
func templateFile(n int, what string) string { return fmt.Sprintf("template-%d.%s", n, what) }

// What the files of a template hold.
const (
	templateImage = "image" // finished
	templateRaw   = "raw"   // how it differs from what lld has left, by exclusive or
	templateMap   = "map"   // lld's link map
)

// check checks all of a manifest that paths, allocations and lookups follow.
func (m *manifest) check() error {
	if len(m.Files) > maxPackedFiles {
		return fmt.Errorf("it has %d files, at most %d are taken", len(m.Files), maxPackedFiles)
	}
	var total int64
	names := map[string]bool{}
	for i, f := range m.Files {
		switch {
		case !plainPath.MatchString(f.Name) || path.Clean(f.Name) != f.Name || !filepath.IsLocal(f.Name) || f.Name == manifestName:
			return fmt.Errorf("%q is no name for one of its files", f.Name)
		case i > 0 && m.Files[i-1].Name >= f.Name:
			return fmt.Errorf("its files are not in order: %s", f.Name)
		case f.Bytes < 0 || f.Bytes > maxPacked-total:
			return fmt.Errorf("its files have more than %d bytes", int64(maxPacked))
		case !digestForm.MatchString(f.Digest):
			return fmt.Errorf("%s has no digest", f.Name)
		}
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if names[dir] {
				return fmt.Errorf("%s is a file and a folder", dir)
			}
		}
		total += f.Bytes
		names[f.Name] = true
	}
	needs := append([]string{"vmlinux.o", "System.map"}, m.Made...)
	if m.BTFIDs != "" {
		needs = append(needs, m.BTFIDs)
	}
	for _, name := range needs {
		if !names[kbuild.BuildName+"/"+name] {
			return fmt.Errorf("it has no %s", name)
		}
	}
	if len(m.Templates) > maxTemplates {
		return fmt.Errorf("it has %d templates, at most %d are taken", len(m.Templates), maxTemplates)
	}
	for n, t := range m.Templates {
		if (n > 0) != (t.Section != "") || t.Bytes > layout.MaxPadding {
			return fmt.Errorf("template %d is padded by %d bytes before %q", n, t.Bytes, t.Section)
		}
		for _, what := range []string{templateImage, templateRaw, templateMap} {
			if name := templateFile(n, what); !names[name] {
				return fmt.Errorf("it has no %s", name)
			}
		}
	}
	switch {
	case len(m.Links) == 0 || slices.ContainsFunc(m.Links, func(argv []string) bool { return len(argv) < 2 }):
		return errors.New("it has no link")
	case m.Output != "vmlinux" && m.Output != "vmlinux.unstripped":
		return fmt.Errorf("%q is no image", m.Output)
	case m.Flat != "" && !slices.Contains(arch.BootFiles(), m.Flat):
		return fmt.Errorf("%q is no image that is booted", m.Flat)
	case m.Sort != nil && (len(m.Sort) < 2 || !filepath.IsLocal(m.Sort[0]) || !names[path.Join(kbuild.BuildName, m.Sort[0])]):
		return errors.New("it has no sorttable")
	case !digestForm.MatchString(m.Object) || !digestForm.MatchString(m.Image) ||
		!versionForm.MatchString(m.LLD) || !versionForm.MatchString(m.Clang+m.GCC):
		return errors.New("its versions and digests are not whole")
	}
	return nil
}

var (
	versionForm = regexp.MustCompile(`\A[0-9]+(\.[0-9]+){1,2}\z`)
	plainPath   = regexp.MustCompile(`\A[A-Za-z0-9._+-]+(/[A-Za-z0-9._+-]+)*\z`)
	digestForm  = regexp.MustCompile(`\A[0-9a-f]{64}\z`)
)

// otherForm is the version of a manifest that is not read here.
type otherForm int

func (v otherForm) Error() string { return fmt.Sprintf("form %d", int(v)) }

// parseManifest reads and checks a manifest. It is strict, but for one of another
// form, of which nothing else is read.
func parseManifest(data []byte) (m manifest, err error) {
	var is struct {
		Version int `json:"unlucky-kernel"`
	}
	if err := json.Unmarshal(data, &is); err != nil {
		return m, err
	}
	if is.Version != packVersion && is.Version != packVersion-1 {
		return m, otherForm(is.Version)
	}
	in := json.NewDecoder(bytes.NewReader(data))
	in.DisallowUnknownFields()
	if err := in.Decode(&m); err != nil {
		return m, err
	}
	return m, m.check()
}
