package linker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/scenarios"
)

// tinyKernel prepares testdata/tiny with some lines added to the end of its
// link-vmlinux.sh. It returns what the kernel notes, too.
func tinyKernel(t *testing.T, more string, code ...string) (*Kernel, *[]string) {
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
	if len(code) > 0 {
		c, cerr := os.ReadFile(filepath.Join(tree, "main.c"))
		err = errors.Join(err, cerr, os.WriteFile(filepath.Join(tree, "main.c"), append(c, strings.Join(code, "")...), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Dir: tree, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	k.By = Pass
	var notes []string
	k.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	return k, &notes
}

// pad16 are plans that differ.
func pad16(n int) layout.Plan {
	return layout.Plan{Paddings: []layout.Padding{{Section: ".text.victim", Bytes: uint64(16 * (n + 1))}}}
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
		out = append(out, digestOf(t, image))
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// linksOnePass holds the images of one pass against those of the script, which it then
// removes: nothing is linked by it any more.
func linksOnePass(t *testing.T, k *Kernel, notes *[]string) {
	t.Helper()
	k.By = Script
	want := digests(t, k, 4)
	k.By, k.layout = Pass, nil
	got := digests(t, k, 2)
	if err := os.Remove(k.Script()); err != nil {
		t.Fatal(err)
	}
	got = append(got, digests(t, k, 4)[2:]...)
	if fmt.Sprint(got) != fmt.Sprint(want) || len(*notes) > 0 {
		t.Errorf("images %v, by the script %v; notes %q", got, want, *notes)
	}
}

// One pass of the linker gives the script's images, and once that has been
// seen the script is not run any more.
func TestOnePass(t *testing.T) {
	k, notes := tinyKernel(t, "")
	linksOnePass(t, k, notes)
}

// A script that does to the image what one pass does not know of is run
// for each layout, from the first on or from the check that shows it.
func TestOnePassDiffers(t *testing.T) {
	slow(t)
	old := checkEvery
	checkEvery = 4
	t.Cleanup(func() { checkEvery = old })
	flag := filepath.Join(t.TempDir(), "flag")
	k, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	k.By = Script
	plain := digests(t, k, 3)
	k.By, k.layout = Pass, nil
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
		t.Error("after a check that failed one pass is still made")
	}

	fresh, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	if again := digests(t, fresh, 3); again[0] == plain[0] || again[2] != got[2] {
		t.Errorf("images %v, want the script's", again)
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "linked by the whole link-vmlinux.sh") {
		t.Errorf("notes %q", *notes)
	}
}

// What resolve_btfids puts into the finished image is put into each, and into those
// of a packed kernel.
func TestOnePassBTF(t *testing.T) {
	slow(t)
	const (
		resolve = `printf 'btf\1' | dd of=vmlinux bs=1 seek=$(grep -abo no.btf.ids vmlinux | cut -d: -f1) conv=notrunc 2>/dev/null` + "\n"
		ids     = `const char ids[10] __attribute__((section(".BTF_ids"), used)) = "no.btf.ids";` + "\n"
	)
	k, _ := tinyKernel(t, resolve, ids)
	k.By = Script
	packed := openPacked(t, t.TempDir(), packKernel(t, k))
	if err := k.Prove(t.Context(), packed, []layout.Plan{pad16(3)}); err != nil {
		t.Error(err)
	}
	if k, notes := tinyKernel(t, resolve, ids); !t.Failed() {
		linksOnePass(t, k, notes)
		if len(k.onePass.how.btfIDs) != 10 {
			t.Errorf("the IDs are %q", k.onePass.how.btfIDs)
		}
	}
}

// A layout that does not link in one pass is linked by the script, and said
// once; that says nothing against it.
func TestOnePassRefuses(t *testing.T) {
	slow(t)
	k, notes := tinyKernel(t, "")
	want := digests(t, k, 3)
	k.onePass.how.kallsyms = &kallsyms{} // other symbols than the image's
	if got := digests(t, k, 3); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("images %v, want %v", got, want)
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "the symbols are others") || k.onePass.how == nil {
		t.Errorf("notes %q", *notes)
	}
	k.onePass.proven, k.onePass.refused = [kinds]bool{}, [kinds]int{}
	digests(t, k, maxRefused)
	if len(*notes) != 3 || !strings.Contains((*notes)[2], "each layout is linked by the whole link-vmlinux.sh") {
		t.Errorf("never proven: notes %q", *notes)
	}
	k.onePass.how.kallsyms = nil // it would be right again
	digests(t, k, 2)
	if k.onePass.proven[padded] || len(*notes) != 3 {
		t.Errorf("after %d refusals it is tried again; notes %q", maxRefused, *notes)
	}
}

// A layout's error is told in the script's words, which one pass has not.
func TestOnePassFails(t *testing.T) {
	k, notes := tinyKernel(t, "")
	digests(t, k, 2)
	if err := os.WriteFile(k.Script(), []byte("echo >&2 ld.lld: error: by the script; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	last := len(k.onePass.how.links) - 1
	k.onePass.how.links[last] = append(k.onePass.how.links[last], "--no-such-option")
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

// A table made by hand: two per-CPU symbols by their addresses, then those
// that count down from the base. Symbols in a tie are in the order of
// scripts/kallsyms.c.
func TestKallsymsMove(t *testing.T) {
	symbols := []struct {
		name string
		kind byte
		at   uint64
	}{
		{"percpu", 'A', 0x40},
		{"_stext", 'T', 0x1000},
		{"b", 't', 0x1100}, {"a", 't', 0x1100}, {"__a", 'T', 0x1100}, {"__start_a", 'T', 0x1100}, {"weak", 'W', 0x1100},
		{"twin", 't', 0x1200}, {"other", 'T', 0x1210}, {"twin", 't', 0x1220},
		{"_etext", 'T', 0x1300},
	}
	k := kallsyms{base: 0x1000, form: down, edges: []int{1, 10}, parts: map[string]int{"seqs_of_names": 0}}
	var at []uint64
	for i, s := range symbols {
		at = append(at, s.at)
		k.entries = append(k.entries, ksym{symbol: i, name: s.name, packed: append([]byte{byte(len(s.name) + 1), s.kind}, s.name...),
			absolute: s.kind == 'A', rank: rank(s.kind, s.name)})
	}
	tableOf := func(at []uint64) symbolTable {
		out := table(at...)
		for i, s := range symbols {
			binary.LittleEndian.PutUint32(out.raw[i*symbolSize:], uint32(len(out.names)))
			out.names += s.name + "\x00"
		}
		return out
	}
	k.table = tableOf(at)
	k.sortNames("")
	moved := func(changes map[int]uint64) symbolTable {
		now := slices.Clone(at)
		for i, a := range changes {
			now[i] = a
		}
		return tableOf(now)
	}
	for _, test := range []struct {
		what    string
		changes map[int]uint64
		order   string
		byName  string // places, in the order of the names
	}{
		{"the baseline", nil, "percpu _stext a b __a __start_a weak twin other twin _etext", "4 5 10 1 2 3 8 0 7 9 6"},
		{"further on", map[int]uint64{7: 0x1208}, "percpu _stext a b __a __start_a weak twin other twin _etext", "4 5 10 1 2 3 8 0 7 9 6"},
		{"passed", map[int]uint64{7: 0x1240}, "percpu _stext a b __a __start_a weak other twin twin _etext", "4 5 10 1 2 3 7 0 8 9 6"},
		{"a tie made", map[int]uint64{8: 0x1100}, "percpu _stext a b other __a __start_a weak twin twin _etext", "5 6 10 1 2 3 4 0 8 9 7"},
		{"a tie undone", map[int]uint64{3: 0x1110}, "percpu _stext b __a __start_a weak a twin other twin _etext", "3 4 10 1 6 2 8 0 7 9 5"},
	} {
		now := moved(test.changes)
		made, err := k.move(now)
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		var order, byName []string
		for names := made["names"]; len(names) > 0; names = names[1+names[0]:] {
			order = append(order, string(names[2:1+names[0]]))
		}
		for seqs := made["seqs_of_names"]; len(seqs) > 0; seqs = seqs[3:] {
			byName = append(byName, fmt.Sprint(int(seqs[0])<<16|int(seqs[1])<<8|int(seqs[2])))
		}
		if got := strings.Join(order, " "); got != test.order {
			t.Errorf("%s: order %s, want %s", test.what, got, test.order)
		}
		if got := strings.Join(byName, " "); got != test.byName {
			t.Errorf("%s: by name %s, want %s", test.what, got, test.byName)
		}
		if got := binary.LittleEndian.Uint32(made["offsets"][4*len(symbols)-4:]); got != ^uint32(0x300) {
			t.Errorf("%s: _etext has offset %#x", test.what, got)
		}
		if got := binary.LittleEndian.Uint32(made["offsets"]); got != 0x40 {
			t.Errorf("%s: the per-CPU symbol has offset %#x", test.what, got)
		}
	}
	for what, now := range map[string]symbolTable{
		"the base moved":  moved(map[int]uint64{1: 0x1010}),
		"below the base":  moved(map[int]uint64{7: 0x0f00}),
		"the edge":        moved(map[int]uint64{9: 0x1300}),
		"behind the edge": moved(map[int]uint64{9: 0x1310}),
		"one symbol less": {raw: k.table.raw[symbolSize:], names: k.table.names},
		"another symbol":  {raw: append([]byte{2}, k.table.raw[1:]...), names: k.table.names},
		"other names":     {raw: k.table.raw, names: "\x00" + k.table.names},
	} {
		if _, err := k.move(now); err == nil {
			t.Errorf("%s: taken for a layout of the same symbols", what)
		}
	}
	// Of 600 entries every 256th has a marker.
	long := kallsyms{base: 0x1000, table: table(slices.Repeat([]uint64{0x1000}, 600)...)}
	for i := range 600 {
		long.entries = append(long.entries, ksym{symbol: i, packed: []byte{1, 't'}})
	}
	made, err := long.move(long.table)
	if got := fmt.Sprint(made["markers"]); err != nil || got != "[0 0 0 0 0 2 0 0 0 4 0 0]" {
		t.Errorf("markers %s, %v", got, err)
	}
}

// A worker works in memory where it fits, and leaves nothing.
func TestWorkerRooms(t *testing.T) {
	base := t.TempDir()
	k, _ := tinyKernel(t, "")
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	if bytes, _ := free(host.MemoryDir); bytes > 1<<30 && !strings.HasPrefix(w.dir, host.MemoryDir) {
		t.Errorf("the worker is in %s, though there is room in %s", w.dir, host.MemoryDir)
	}
	old := host.MemoryDir
	host.MemoryDir = filepath.Join(base, "full") // no room there
	defer func() { host.MemoryDir = old }()
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
	before := digestOf(t, image)
	second, err := w.Link(t.Context(), pad16(1))
	if err != nil {
		t.Fatal(err)
	}
	if digest := digestOf(t, image); digest != before || digestOf(t, second) == digest {
		t.Errorf("an image did not outlive the next link")
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

// One pass is proven for padding, for other orders and for lld's own padding,
// each by one layout. Once it gives another image it is not taken any more, for
// none of these.
func TestOnePassDistrust(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	k, notes := tinyKernel(t, "if [ -e "+flag+" ]; then echo >>vmlinux; fi\n")
	w, functions := ordering(t, k)
	seed := uint32(1)
	// Of layouts: whether one pass has linked them.
	short := func(order, bytes int) bool {
		t.Helper()
		p := layout.Plan{Paddings: []layout.Padding{{Section: ".text.victim", Bytes: uint64(bytes)}}}
		if order > 0 {
			p.Order = []string{functions[order], functions[0]}
		}
		if order < 0 {
			p = layout.Plan{Flag: &seed}
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
	for _, order := range []int{0, 1, -1} {
		if short(order, 16) {
			t.Errorf("the first layout of order %d was not compared", order)
		}
	}
	for _, order := range []int{0, 1, 2, 3, -1} {
		if !short(order, 32) {
			t.Errorf("order %d is not linked in one pass; notes %q", order, *notes)
		}
	}
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k.links.Store(int64(checkEvery - 1)) // the next layout is compared
	short(2, 80)
	if len(*notes) != 2 || !strings.Contains((*notes)[0], "no longer gives the image") {
		t.Errorf("notes %q", *notes)
	}
	for _, order := range []int{0, 1, 2, 4, -1} {
		if short(order, 96) {
			t.Errorf("order %d is linked in one pass still", order)
		}
	}
}

// A first layout of another order that gives another image, where padding did
// not, ends it for all.
func TestOnePassOrderDiffers(t *testing.T) {
	k, notes := tinyKernel(t, "")
	digests(t, k, 2)
	if !k.onePass.proven[padded] {
		t.Fatal(*notes)
	}
	script, err := os.ReadFile(k.Script())
	if err == nil {
		err = os.WriteFile(k.Script(), append(script, "echo >>vmlinux\n"...), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	w, functions := ordering(t, k)
	image, err := w.Link(t.Context(), layout.Plan{Order: []string{functions[1], functions[0]}})
	if err != nil || image.SystemMap == "" {
		t.Fatalf("the first of an order: %+v, %v", image, err)
	}
	if k.onePass.how != nil || len(*notes) != 1 || !strings.Contains((*notes)[0], "that gives another image") {
		t.Errorf("notes %q", *notes)
	}
}

// A first layout of another order that does not link leaves the proof to the next.
func TestOnePassProvenLater(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "flag")
	k, _ := tinyKernel(t, "if [ -e "+flag+" ]; then echo >&2 'ld.lld: error: on purpose'; exit 1; fi\n")
	w, functions := ordering(t, k)
	link := func(bytes uint64) (Image, error) {
		return w.Link(t.Context(), layout.Plan{Order: []string{functions[1], functions[0]}, Paddings: []layout.Padding{{Section: ".text.victim", Bytes: bytes}}})
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
	for n, want := range []bool{false, true} { // compared, believed
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
// an image in it can be read by a QEMU of another user that is handed it.
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
		k.Script():                             0o755,
		k.Source:                               0o755,
		filepath.Join(w.dir, "vmlinux.o"):      0o644,
		filepath.Join(k.Dir, "build.log"):      0o644,
		filepath.Join(k.Dir, "environment.mk"): 0o644,
		filepath.Join(k.Dir, "prepared.json"):  0o644,
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
}
