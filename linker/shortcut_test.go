package linker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unlucky/scenarios"
)

// tinyKernel prepares testdata/tiny with some lines added to the end of its
// link-vmlinux.sh. It returns what the kernel notes, too.
func tinyKernel(t *testing.T, more string) (*Kernel, *[]string) {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tiny")
	if err := os.CopyFS(tree, os.DirFS("testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tree, "scripts/link-vmlinux.sh")
	script, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.WriteFile(path, append(script, more...), 0o755), os.Chmod(path, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Dir: tree, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	var notes []string
	k.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	return k, &notes
}

// pad16 are plans that differ.
func pad16(n int) Plan {
	return Plan{Paddings: []Padding{{Section: ".text.victim", Bytes: uint64(16 * (n + 1))}}}
}

// digests links plans one after the other with one worker.
func digests(t *testing.T, k *Kernel, plans int) (out []string) {
	t.Helper()
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for n := range plans {
		image, err := w.Link(t.Context(), pad16(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
		out = append(out, image.Digest)
	}
	return out
}

// One pass of the linker gives the script's images, and once that has been
// seen the script is not run any more.
func TestShortcut(t *testing.T) {
	k, notes := tinyKernel(t, "")
	k.FullScript = true
	want := digests(t, k, 4)
	k.FullScript, k.layout = false, nil
	got := digests(t, k, 2)
	if err := os.Remove(k.script()); err != nil {
		t.Fatal(err)
	}
	got = append(got, digests(t, k, 4)[2:]...)
	if fmt.Sprint(got) != fmt.Sprint(want) || len(*notes) > 0 {
		t.Errorf("images %v, by the script %v; notes %q", got, want, *notes)
	}
}

// A script that does to the image what the shortcut does not know of is run
// for each layout, from the first on or from the check that shows it.
func TestShortcutDiffers(t *testing.T) {
	old := checkEvery
	checkEvery = 4
	t.Cleanup(func() { checkEvery = old })
	flag := filepath.Join(t.TempDir(), "flag")
	k, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	k.FullScript = true
	plain := digests(t, k, 3)
	k.FullScript, k.layout = false, nil
	if got := digests(t, k, 3); fmt.Sprint(got) != fmt.Sprint(plain) || len(*notes) > 0 {
		t.Fatalf("images %v, by the script %v; notes %q", got, plain, *notes)
	}
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got := digests(t, k, 3)
	if len(*notes) != 2 || !strings.Contains((*notes)[0], "warning: one pass of the linker no longer gives") || !strings.Contains((*notes)[1], "the last 4 layouts") {
		t.Errorf("notes %q", *notes)
	}
	if got[2] == plain[2] {
		t.Error("after a check that failed the shortcut is still taken")
	}

	fresh, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	if again := digests(t, fresh, 3); again[0] == plain[0] || again[2] != got[2] {
		t.Errorf("images %v, want the script's", again)
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "linked by the whole link-vmlinux.sh") {
		t.Errorf("notes %q", *notes)
	}
}

// What puts more into the image than the shortcut knows of is seen at once.
func TestShortcutOutOfReach(t *testing.T) {
	k, notes := tinyKernel(t, "resolve_btfids() { :; }\nresolve_btfids vmlinux\n")
	digests(t, k, 2)
	if k.shorts[0].way != nil || len(*notes) != 1 || !strings.Contains((*notes)[0], "its link needs resolve_btfids") {
		t.Errorf("notes %q", *notes)
	}
}

// A layout that the shortcut does not link is linked by the script, and said
// once; that says nothing against the shortcut.
func TestShortcutRefuses(t *testing.T) {
	k, notes := tinyKernel(t, "")
	want := digests(t, k, 3)
	k.shorts[0].way.kallsyms = &kallsyms{} // other symbols than the image's
	if got := digests(t, k, 3); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("images %v, want %v", got, want)
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "the symbols are others") || k.shorts[0].way == nil {
		t.Errorf("notes %q", *notes)
	}
	k.shorts = []*shortcutState{{from: Plan{}.Digest(), way: k.shorts[0].way}}
	digests(t, k, maxRefused)
	if len(*notes) != 3 || k.shorts[0].way != nil {
		t.Errorf("never proven: notes %q", *notes)
	}
}

// A layout's error is told in the script's words, which the shortcut has not.
func TestShortcutFails(t *testing.T) {
	k, notes := tinyKernel(t, "")
	digests(t, k, 2)
	if err := os.WriteFile(k.script(), []byte("echo >&2 ld.lld: error: by the script; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	k.shorts[0].way.link = append(k.shorts[0].way.link, "--no-such-option")
	var failed *LinkError
	if _, err := w.Link(t.Context(), pad16(0)); !errors.As(err, &failed) || failed.Reason != "ld.lld: error: by the script" {
		t.Errorf("error %v, notes %q", err, *notes)
	}
}

// table is a symbol table of addresses; the names are one and the same.
func table(addresses ...uint64) symbolTable {
	t := symbolTable{names: "\x00"}
	for _, a := range addresses {
		var s [symbolSize]byte
		binary.LittleEndian.PutUint64(s[8:], a)
		t.raw = append(t.raw, s[:]...)
	}
	return t
}

func TestKallsymsMove(t *testing.T) {
	// A per-CPU symbol by its address, the base and two aliases counted down.
	k := kallsyms{
		table: table(0x40, 0x1000, 0x1100, 0x1100, 0x1200),
		edges: []int{4},
		entries: []ksym{
			{symbol: 0, offset: 0x40},
			{symbol: 1, offset: ^uint32(0), down: true, base: true},
			{symbol: 2, offset: ^uint32(0x100), down: true},
			{symbol: 3, offset: ^uint32(0x100), down: true},
		},
	}
	out, err := k.move(table(0x40, 0x1000, 0x1130, 0x1130, 0x1240))
	want := []uint32{0x40, ^uint32(0), ^uint32(0x130), ^uint32(0x130)}
	for i, w := range want {
		if err != nil || binary.LittleEndian.Uint32(out[4*i:]) != w {
			t.Fatalf("%x, %v, want %x", out, err, want)
		}
	}
	for name, now := range map[string]symbolTable{
		"a tie undone":       table(0x40, 0x1000, 0x1130, 0x1140, 0x1240),
		"a tie made":         table(0x40, 0x1000, 0x1000, 0x1000, 0x1240),
		"passed":             table(0x40, 0x1000, 0x0f00, 0x0f00, 0x1240),
		"the base moved":     table(0x40, 0x1010, 0x1130, 0x1130, 0x1240),
		"the edge reached":   table(0x40, 0x1000, 0x1240, 0x1240, 0x1240),
		"one symbol less":    table(0x40, 0x1000, 0x1130, 0x1130),
		"another symbol":     {raw: append([]byte{1}, k.table.raw[1:]...), names: k.table.names},
		"names of another":   {raw: k.table.raw, names: "\x00\x00"},
		"the per-CPU passed": table(0x2000, 0x1000, 0x1130, 0x1130, 0x1240),
	} {
		if _, err := k.move(now); err == nil {
			t.Errorf("%s: taken for a layout of the same order", name)
		}
	}
}

// What a killed run left in memory is removed by the next, what another one
// uses is not; and a worker leaves nothing.
func TestRooms(t *testing.T) {
	base := t.TempDir()
	left, results := filepath.Join(base, roomPrefix+"left"), filepath.Join(base, "unlucky-results")
	for _, dir := range []string{left, results} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "vmlinux"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	used, held, err := newRoom(base)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	removeRooms(base)
	if exists(left) || !exists(used) || !exists(results) {
		t.Errorf("there is what was left over: %v, what is used: %v, what is no room: %v", exists(left), exists(used), exists(results))
	}

	k, _ := tinyKernel(t, "")
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	if bytes, _ := free(memoryDir); bytes > 1<<30 && !strings.HasPrefix(w.dir, memoryDir) {
		t.Errorf("the worker is in %s, though there is room in %s", w.dir, memoryDir)
	}
	old := memoryDir
	memoryDir = filepath.Join(base, "full") // no room there
	defer func() { memoryDir = old }()
	disk, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(disk.dir, k.Dir) {
		t.Errorf("the worker is in %s without room in memory", disk.dir)
	}
	if _, err := disk.Link(t.Context(), pad16(0)); err != nil {
		t.Error(err)
	}
	disk.Close()

	image, err := w.Link(t.Context(), pad16(0))
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.Link(t.Context(), pad16(1))
	if err != nil {
		t.Fatal(err)
	}
	if digest, err := fileDigest(image.Path); err != nil || digest != image.Digest || second.Digest == digest {
		t.Errorf("an image did not outlive the next link: %v", err)
	}
	if err := errors.Join(image.Remove(), w.Close()); err != nil || exists(w.room) || exists(second.Path) {
		t.Errorf("after Close: %v, the room is there: %v", err, exists(w.room))
	}
}

// ordering is a worker, and functions that can take each other's places.
func ordering(t *testing.T, k *Kernel) (w *Worker, functions []string) {
	t.Helper()
	layout, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range layout {
		if s.Group > 0 && s.Group == layout[len(layout)/2].Group {
			functions = append(functions, s.Name)
		}
	}
	if w, err = k.NewWorker(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, functions
}

// Once a shortcut that was believed gives another image, none is taken any
// more: not the baseline's, not another order's, not one of a new order.
func TestShortcutDistrust(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	k, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	w, functions := ordering(t, k)
	// Of layouts of some orders: who linked them.
	short := func(order, bytes int) bool {
		t.Helper()
		p := Plan{Paddings: []Padding{{Section: ".text.victim", Bytes: uint64(bytes)}}}
		if order > 0 {
			p.Order = []string{functions[order], functions[0]}
		}
		image, err := w.Link(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
		return image.SystemMap == ""
	}
	for order := range 3 {
		for bytes := 16; bytes <= 48; bytes += 16 {
			short(order, bytes)
		}
	}
	for order := range 3 {
		if !short(order, 64) {
			t.Fatalf("order %d is not linked in one pass; notes %q", order, *notes)
		}
	}
	if short(3, 16) || !short(3, 32) {
		t.Error("a third order is not believed when it is learnt")
	}
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k.links.Store(int64(checkEvery - 1)) // the next layout is compared
	short(2, 80)
	if len(*notes) != 2 || !strings.Contains((*notes)[0], "no longer gives the image") {
		t.Errorf("notes %q", *notes)
	}
	for order := range 5 {
		for bytes := 96; bytes <= 128; bytes += 16 {
			if short(order, bytes) {
				t.Errorf("order %d is linked in one pass still", order)
			}
		}
	}
}

// A first layout of an order that does not link leaves the order to the next.
func TestShortcutLearnsLater(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	k, _ := tinyKernel(t, "if [ -e "+flag+" ]; then echo >&2 'ld.lld: error: on purpose'; exit 1; fi\n")
	w, functions := ordering(t, k)
	link := func(bytes uint64) (Image, error) {
		return w.Link(t.Context(), Plan{Order: []string{functions[1], functions[0]}, Paddings: []Padding{{Section: ".text.victim", Bytes: bytes}}})
	}
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var failed *LinkError
	if _, err := link(16); !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	for n, want := range []bool{false, false, true} { // learnt, compared, believed
		image, err := link(uint64(32 + 16*n))
		if err != nil {
			t.Fatal(err)
		}
		if short := image.SystemMap == ""; short != want {
			t.Errorf("layout %d is linked in one pass: %v", n, short)
		}
	}
}

// Whatever the umask, nobody else can write to what is made, or get into a room;
// an image in it can be read by a QEMU of another user that is handed it. A link
// with the name of a room is not followed.
func TestModes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	k, _ := tinyKernel(t, "")
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Link(t.Context(), pad16(1)); err != nil {
		t.Fatal(err)
	}
	unix.Umask(0o022) // lld's own files
	image, err := w.Link(t.Context(), pad16(0))
	if err != nil {
		t.Fatal(err)
	}
	unix.Umask(0)
	for path, want := range map[string]os.FileMode{
		w.room:                                 0o700,
		w.dir:                                  0o755,
		k.Dir:                                  0o755,
		image.Path:                             0o755,
		k.script():                             0o755,
		k.Source:                               0o755,
		filepath.Join(w.dir, "vmlinux.o"):      0o644,
		filepath.Join(k.Dir, "build.log"):      0o644,
		filepath.Join(k.Dir, "environment.mk"): 0o644,
		k.statePath():                          0o644,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: mode %o, want %o", path, got, want)
		}
	}
	if info, err := os.Stat(filepath.Join(k.Dir, "lock")); err != nil || info.Mode().Perm()&0o022 != 0 {
		t.Errorf("the lock: %v, %v", info.Mode(), err)
	}
	link := filepath.Join(t.TempDir(), roomPrefix+"link")
	if err := os.Symlink(w.room, link); err != nil {
		t.Fatal(err)
	}
	if held, err := lockRoom(link); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link was taken for a room: %v, %v", held, err)
	}
}
