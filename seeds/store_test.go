package seeds

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"unlucky/layout"
	"unlucky/qemu"
)

// files lists all files and empty folders below dir, sorted.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if inside, err := os.ReadDir(path); err != nil || len(inside) > 0 {
				return err
			}
		}
		rel, err := filepath.Rel(dir, path)
		out = append(out, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// save saves f and checks what the store then holds.
func save(t *testing.T, s *Store, f File, console, wantPath string, wantFiles ...string) {
	t.Helper()
	path, err := s.Save(f, []byte(console))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(s.Dir(), wantPath); path != want {
		t.Errorf("saved as %s, want %s", path, want)
	}
	want, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%s holds %q, %v", path, got, err)
	}
	if got, err := os.ReadFile(strings.TrimSuffix(path, ".yaml") + ".console"); err != nil || string(got) != console {
		t.Errorf("the console beside %s is %q, %v; want %q", path, got, err, console)
	}
	if got := files(t, s.Dir()); !slices.Equal(got, wantFiles) {
		t.Errorf("the store holds %q, want %q", got, wantFiles)
	}
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "unlucky.out")
	s, err := Open(dir, "kcfi-seal")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("Open made the folder: %v", err)
	}
	f := example(t)
	f.Title, f.Titles = "invalid opcode in f", nil
	save(t, s, f, "first\n", "invalid-opcode-in-f/7.yaml",
		"invalid-opcode-in-f/7.console", "invalid-opcode-in-f/7.yaml")

	// Its confirmations come in.
	f.Boots, f.Crashes = 5, 4
	save(t, s, f, "first\n", "invalid-opcode-in-f/7.yaml",
		"invalid-opcode-in-f/7.console", "invalid-opcode-in-f/7.yaml")

	// A minimized plan stands beside it.
	min := f
	min.Plan = &layout.Plan{Paddings: []layout.Padding{{Section: ".text.f", Bytes: 16}}}
	save(t, s, min, "minimized\n", "invalid-opcode-in-f/7.min.yaml",
		"invalid-opcode-in-f/7.console", "invalid-opcode-in-f/7.min.console", "invalid-opcode-in-f/7.min.yaml", "invalid-opcode-in-f/7.yaml")
	for _, name := range []string{"7.min.yaml", "7.min.console"} {
		if err := os.Remove(filepath.Join(s.Dir(), "invalid-opcode-in-f", name)); err != nil {
			t.Fatal(err)
		}
	}

	// Another layout of the same title; then the first turns out otherwise.
	other := f
	other.Layout = Seed(8)
	save(t, s, other, "eight\n", "invalid-opcode-in-f/8.yaml",
		"invalid-opcode-in-f/7.console", "invalid-opcode-in-f/7.yaml", "invalid-opcode-in-f/8.console", "invalid-opcode-in-f/8.yaml")
	f.Title = "hang: no output after x"
	save(t, s, f, "again\n", "hang--no-output-after-x/7.yaml",
		"hang--no-output-after-x/7.console", "hang--no-output-after-x/7.yaml", "invalid-opcode-in-f/8.console", "invalid-opcode-in-f/8.yaml")

	// The other becomes a twin, and its old folder goes.
	other.Kind, other.Title, other.Crashes = qemu.Pass, "", 0
	save(t, s, other, "passes\n", "twin-8.yaml",
		"hang--no-output-after-x/7.console", "hang--no-output-after-x/7.yaml", "twin-8.console", "twin-8.yaml")
	other.Kind, other.Title, other.Crashes = qemu.Hang, "hang: no output after x", 1
	save(t, s, other, "hangs\n", "hang--no-output-after-x/8.yaml",
		"hang--no-output-after-x/7.console", "hang--no-output-after-x/7.yaml", "hang--no-output-after-x/8.console", "hang--no-output-after-x/8.yaml")

	base := other
	base.Layout, base.Kind, base.Title = Baseline, qemu.Pass, ""
	base.Crashes = 0
	save(t, s, base, "b\n", "twin-baseline.yaml",
		"hang--no-output-after-x/7.console", "hang--no-output-after-x/7.yaml", "hang--no-output-after-x/8.console", "hang--no-output-after-x/8.yaml", "twin-baseline.console", "twin-baseline.yaml")
}

// What the user put into the store stays, whatever it is called.
func TestStoreKeepsOthers(t *testing.T) {
	s, err := Open(t.TempDir(), "canary")
	if err != nil {
		t.Fatal(err)
	}
	f := example(t)
	f.Title, f.Titles = "int3 in a", nil
	path, err := s.Save(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(s.Dir(), "mine")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		filepath.Join(mine, "7.yaml"):                []byte("mine"),
		filepath.Join(s.Dir(), "int3-in-a/note"):     []byte("note"),
		filepath.Join(s.Dir(), "copy-7.yaml"):        data,
		filepath.Join(s.Dir(), "twin-7.yaml"):        data, // not where it would have been saved
		filepath.Join(s.Dir(), "int3-in-a/8.yaml"):   data,
		filepath.Join(s.Dir(), "int3-in-b.old.yaml"): data,
	} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.Title = "int3 in b"
	if _, err := s.Save(f, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"copy-7.yaml", "int3-in-a/8.yaml", "int3-in-a/note", "int3-in-b/7.console", "int3-in-b/7.yaml", "int3-in-b.old.yaml", "mine/7.yaml", "twin-7.yaml"}
	got := files(t, s.Dir())
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the store holds %q, want %q", got, want)
	}
}

// A save that fails leaves no temporary file, and the older seed whole.
func TestStoreSaveFails(t *testing.T) {
	s, err := Open(t.TempDir(), "canary")
	if err != nil {
		t.Fatal(err)
	}
	f := example(t)
	f.Title, f.Titles = "int3 in a", nil
	if _, err := s.Save(f, nil); err != nil {
		t.Fatal(err)
	}
	before := files(t, s.Dir())
	// A file where the folder of the next title should be: true for root too.
	f.Title = "int3 in b"
	if err := os.WriteFile(filepath.Join(s.Dir(), Slug(f.Title)), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if path, err := s.Save(f, nil); err == nil || !strings.Contains(err.Error(), "save layout 7: ") || path != "" {
		t.Errorf("saved as %q, error %v", path, err)
	}
	if got := files(t, s.Dir()); !slices.Equal(got, append(before, "int3-in-b")) {
		t.Errorf("the store holds %q, before %q", got, before)
	}
	f.Boots = 0
	if _, err := s.Save(f, nil); err == nil {
		t.Error("a seed without boots was saved")
	}
}

// What is written in a results folder does not follow the links of whoever made
// that.
func TestLinksInStore(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "sweep.journal")
	if err := os.Symlink(filepath.Join(elsewhere, "new"), path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, header()); err == nil || !strings.Contains(err.Error(), "is a link, and is not written through: remove the link, or use another -o") {
		t.Errorf("the journal: %v", err)
	}
	s, err := Open(dir, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	f := example(t)
	f.Title, f.Titles = "int3 in f", nil
	if err := errors.Join(os.Mkdir(s.Dir(), 0o755), os.Symlink(elsewhere, filepath.Join(s.Dir(), "int3-in-f"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(f, nil); err == nil || !strings.Contains(err.Error(), "int3-in-f is no folder: remove it, or use another -o") {
		t.Errorf("a folder: %v", err)
	}
	f.Title = "int3 in g"
	if _, err := s.Save(f, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"7.yaml", "7.console"} {
		at := filepath.Join(s.Dir(), "int3-in-g", name)
		mine := filepath.Join(elsewhere, name)
		if err := errors.Join(os.WriteFile(mine, []byte("mine"), 0o600), os.Remove(at), os.Symlink(mine, at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Save(f, nil); err != nil {
		t.Fatal(err)
	}
	if got := files(t, elsewhere); !slices.Equal(got, []string{"7.console", "7.yaml"}) {
		t.Errorf("elsewhere are %q", got)
	}
	for _, name := range []string{"7.yaml", "7.console"} {
		if data, err := os.ReadFile(filepath.Join(elsewhere, name)); err != nil || string(data) != "mine" {
			t.Errorf("%s was written through a link: %q, %v", name, data, err)
		}
		if info, err := os.Lstat(filepath.Join(s.Dir(), "int3-in-g", name)); err != nil || info.Mode()&^0o644 != 0 || info.Mode()&0o600 != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}

// What a killed run was about to write is removed by the next, and nothing else:
// not what other shards are about to write.
func TestTidy(t *testing.T) {
	s, err := Open(t.TempDir(), "tiny")
	if err != nil {
		t.Fatal(err)
	}
	sweeps := []string{".twin-3.yaml123", ".layout-0123456789ab.json.gz7", ".sweep.journal.broken-1999", "int3-in-f/.7.yaml1", "int3-in-f/.7.console22", "only/.baseline.yaml3"}
	second := []string{".twin-2.yaml5", ".twin-2.console1", "int3-in-f/.8.yaml1", "only-8/.8.console1", ".sweep-2-of-3.journal.broken-12"}
	minimizes := []string{"int3-in-f/.7.min.yaml5", "int3-in-f/.7.min.int3-in-g.console6"}
	others := []string{"int3-in-f/.7.yaml.swp", "int3-in-f/.note7", "int3-in-f/7.yaml", "int3-in-f/7.min.yaml", "sweep.journal"}
	for _, name := range slices.Concat(sweeps, second, minimizes, others) {
		path := filepath.Join(s.Dir(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...[]string) {
		t.Helper()
		got, all := files(t, s.Dir()), slices.Concat(want...)
		slices.Sort(got)
		slices.Sort(all)
		if !slices.Equal(got, all) {
			t.Errorf("left are %q, want %q", got, all)
		}
	}
	residue := func(n uint32) func(ID) bool {
		return func(l ID) bool { seed, _ := l.Seed(); return seed%3 == n && (l != Baseline || n == 0) }
	}
	if err := s.Tidy("sweep-2-of-3.journal", residue(2)); err != nil {
		t.Fatal(err)
	}
	check(sweeps, minimizes, others) // which may be at work
	if err := s.Tidy("sweep.journal", func(ID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	check(minimizes, others)
	if err := Tidy(filepath.Join(s.Dir(), "int3-in-f/7.min.yaml")); err != nil {
		t.Fatal(err)
	}
	check(others)
}

func TestStoreConcurrent(t *testing.T) {
	s, err := Open(t.TempDir(), "canary")
	if err != nil {
		t.Fatal(err)
	}
	base := example(t)
	base.Titles = nil
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			f := base
			f.Layout = Seed(uint32(w))
			for i := range 4 { // changes its title all the time, and empties folders so
				f.Title = fmt.Sprintf("int3 in f%d", (w+i)%2)
				if _, err := s.Save(f, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := files(t, s.Dir()); len(got) != 8 {
		t.Errorf("the store holds %q", got)
	}
}

// Shards share a folder, and no lock: each begins with tidying up, where it finds
// folders that others have made for what they are just saving; and all save the
// baseline's layout.
func TestStoreShared(t *testing.T) {
	dir := t.TempDir()
	base := example(t)
	base.Titles = nil
	layout := []layout.Section{{Name: ".text.f", Output: ".text", Address: 0xffffffff81000000, Size: 16, Align: 16, Index: 1, Moves: true}}
	object := strings.Repeat("1", 64)
	const shards, titles = 6, 12
	store := func() *Store { // one for each, as for processes
		s, err := Open(dir, "canary")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := store().SaveBaseline(object, layout); err != nil {
		t.Fatal(err)
	}
	var saving, beginning sync.WaitGroup
	var saved atomic.Bool
	for w := range uint32(shards) {
		s := store()
		saving.Go(func() {
			f := base
			f.Layout = Seed(w)
			for i := range titles { // the title before is removed, with its folder
				f.Title = fmt.Sprintf("int3 in f%d", i%2)
				if _, err := s.Save(f, nil); err != nil {
					t.Error(err)
				}
				if err := s.SaveBaseline(object, layout); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		s := store()
		beginning.Go(func() {
			for !saved.Load() {
				if err := s.Tidy("sweep-7-of-8.journal", func(l ID) bool { return l == Baseline }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	saving.Wait()
	saved.Store(true)
	beginning.Wait()
	want := []string{filepath.Base(BaselinePath("", object))}
	for w := range shards {
		want = append(want, fmt.Sprintf("int3-in-f1/%d.console", w), fmt.Sprintf("int3-in-f1/%d.yaml", w))
	}
	if got := files(t, filepath.Join(dir, "canary")); !slices.Equal(got, append(want[1:], want[0])) {
		t.Errorf("the store holds %q, want %q", got, want)
	}
}

func TestOpenBadName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00"} {
		if _, err := Open(t.TempDir(), name); err == nil {
			t.Errorf("Open took the scenario %q", name)
		}
	}
}

func TestSlug(t *testing.T) {
	long := strings.Repeat("a", 200)
	for title, want := range map[string]string{
		"invalid opcode in canary_reboot":           "invalid-opcode-in-canary_reboot",
		"BUG: soft lockup in f":                     "BUG--soft-lockup-in-f",
		"unexpected exit":                           "unexpected-exit",
		"hang: no output after x":                   "hang--no-output-after-x",
		"BUG: KASAN: slab-use-after-free Read in f": "BUG--KASAN--slab-use-after-free-Read-in-f.13c3d40c",
		"a-b":       "a-b.d44362d6",
		"a  b":      "a--b.6e12db73",
		"":          "title.e3b0c442",
		"..":        "title.5ec1f7e7",
		"/":         "title.8a5edab2",
		"../../etc": "etc.74ccf3c5",
		"\x1b[2J":   "2J.05704e8a",
		"größe":     "gr--e.d353a267",
		long:        long[:80] + ".c2a908d9",
	} {
		got := Slug(title)
		if got != want {
			t.Errorf("Slug(%q) = %q, want %q", title, got, want)
		}
	}
}

// FuzzSlug: a slug is always a plain file name, and two titles never share
// one.
func FuzzSlug(f *testing.F) {
	for _, title := range []string{"BUG: soft lockup in f", "a-b", "a b", "a: b", "a : b", "", "..", "größe", "title.e3b0c442"} {
		f.Add(title, "a  b")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		slug := Slug(a)
		if slug == "" || len(slug) > maxSlug+len(".12345678") || strings.ContainsAny(slug[:1], ".-") ||
			strings.Trim(slug, "-._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			t.Errorf("Slug(%q) = %q", a, slug)
		}
		if a != b && slug == Slug(b) {
			t.Errorf("%q and %q are both %q", a, b, slug)
		}
	})
}
