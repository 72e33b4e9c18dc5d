package scenarios

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"gopkg.in/yaml.v3"

	"unlucky/arch"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

const good = `name: mine
kernel:
  package: linux-source-6.12
  config: tinyconfig
guest:
  init: |
    #!/bin/busybox sh
    echo good
verdict:
  pass: good
`

// edited is the good scenario with one text in the place of another.
func edited(t testing.TB, old, new string) string {
	t.Helper()
	if strings.Count(good, old) != 1 {
		t.Fatalf("%q is not in the good scenario once", old)
	}
	return strings.Replace(good, old, new, 1)
}

func parseGood(t testing.TB, text string) Scenario {
	t.Helper()
	s, err := Parse([]byte(text), "testdata/files/mine.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestErrors reads testdata/errors.txtar: pairs of NAME.yaml and NAME.error,
// and compares the exact error of each.
func TestErrors(t *testing.T) {
	const golden = "testdata/errors.txtar"
	a, err := txtar.ParseFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	// Beside the scenarios, a folder of files that they name.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/files")); err != nil {
		t.Fatal(err)
	}
	if len(a.Files) == 0 || len(a.Files)%2 != 0 {
		t.Fatalf("%s: %d files, want pairs", golden, len(a.Files))
	}
	for i := 0; i < len(a.Files); i += 2 {
		in, want := a.Files[i], &a.Files[i+1]
		name := strings.TrimSuffix(in.Name, ".yaml")
		if want.Name != name+".error" {
			t.Fatalf("%s is followed by %s", in.Name, want.Name)
		}
		t.Run(name, func(t *testing.T) {
			_, err := Parse(in.Data, filepath.Join(dir, "my.yaml"))
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
			if *update {
				want.Data = []byte(got)
			} else if got != string(want.Data) {
				t.Errorf("got  %swant %s", got, want.Data)
			}
		})
	}
	if *update {
		if err := os.WriteFile(golden, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDefaults(t *testing.T) {
	s := parseGood(t, good)
	if s.Kernel.Arch != "x86_64" || s.Kernel.Image != "vmlinux" || s.Guest.Accel != "auto" ||
		s.Guest.Memory.String() != "512M" || s.Guest.CPUs != 1 || s.Guest.Limit.String() != "1m0s" || s.Verdict.Confirm != 2 {
		t.Errorf("defaults are %+v", s)
	}
	if s.Verdict.Crash.Regexp != nil || s.Verdict.Crash.String() != "" {
		t.Errorf("crash is %q, want none", s.Verdict.Crash)
	}
}

// TestFiles reads what a scenario names from beside it, and needs it no more
// afterwards.
func TestFiles(t *testing.T) {
	s := parseGood(t, `name: mine
kernel:
  dir: tree
  config: my.config
  patches:
    - file: my.patch
    - file: planted.patch
      want: absent
guest:
  rootfs: my.cpio
verdict: {pass: good}
`)
	dir, err := filepath.Abs("testdata/files")
	if err != nil {
		t.Fatal(err)
	}
	if s.Kernel.Dir != dir+"/tree" || s.Guest.Rootfs != dir+"/my.cpio" {
		t.Errorf("dir is %s, rootfs %s: want absolute paths", s.Kernel.Dir, s.Guest.Rootfs)
	}
	if s.Kernel.Config != "CONFIG_SMP=y\n" {
		t.Errorf("config is %q", s.Kernel.Config)
	}
	if p := s.Kernel.Patches; p[0].Want != "applied" || !strings.Contains(p[0].Text, "+++ b/README") || !strings.Contains(p[1].Text, "canary_victim") {
		t.Errorf("patches are %+v", p)
	}
	if s := parseGood(t, edited(t, "init: |\n    #!/bin/busybox sh\n    echo good", "init: my.sh")); s.Guest.Init != "echo good\n" {
		t.Errorf("init is %q", s.Guest.Init)
	}
	data, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	// As inside a saved seed, on another machine.
	var again struct{ Scenario Scenario }
	data = []byte("scenario:\n  " + strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(string(data), dir, "/elsewhere")), "\n", "\n  ") + "\n")
	if err := yaml.Unmarshal(data, &again); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	if again.Scenario.Kernel.Dir != "/elsewhere/tree" || again.Scenario.Kernel.Patches[0].Text != s.Kernel.Patches[0].Text {
		t.Errorf("got %+v", again.Scenario)
	}
	short := strings.Replace(string(data), "name: mine", "nam: mine", 1)
	if err := yaml.Unmarshal([]byte(short), &again); err == nil || !strings.HasPrefix(err.Error(), "line 2: nam: unknown key") {
		t.Errorf("unknown key inside another document: %v", err)
	}
	bare := "scenario:\n  " + strings.ReplaceAll(edited(t, "config: tinyconfig", "config: my.config"), "\n", "\n  ")
	if err := yaml.Unmarshal([]byte(bare), &again); err == nil || !strings.Contains(err.Error(), "its text must stand in its place") {
		t.Errorf("a file named inside another document: %v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"my.yaml", "plain"} {
		if err := os.WriteFile(name, []byte(good), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(name); err != nil || s.Name != "mine" {
			t.Errorf("Load(%s) = %q, %v", name, s.Name, err)
		}
	}
	for name, want := range map[string]string{
		"nosuch":   `no scenario "nosuch": built in are kcfi-seal, kcfi-hash, canary, boot, page-cross, pair, early, canary-flaky, overrun, cfi-shutdown, canary-arm64, boot-arm64, page-cross-arm64, pair-arm64, early-arm64, canary-flaky-arm64, gki; or give a YAML file`,
		"x.yaml":   "reading the scenario: open x.yaml: no such file or directory",
		"./nosuch": "reading the scenario: open ./nosuch: no such file or directory",
		dir:        "reading the scenario: read " + dir + ": is a directory",
	} {
		if _, err := Load(name); err == nil || err.Error() != want {
			t.Errorf("Load(%s): %v, want %s", name, err, want)
		}
	}
}

func TestBuiltin(t *testing.T) {
	all := Builtin()
	if len(all) == 0 || all[0].Name != "kcfi-seal" {
		t.Fatal("the default, kcfi-seal, is not first")
	}
	files, err := filepath.Glob("builtin/*.yaml")
	if err != nil || len(files) != len(all) {
		t.Errorf("%d files for %d scenarios (%v)", len(files), len(all), err)
	}
	var planted *Kernel
	for i, s := range all {
		if s.Name != names[i] || s.Description == "" {
			t.Errorf("scenario %s: name %q, description %q", names[i], s.Name, s.Description)
		}
		// A copy loads from anywhere, and is the same.
		source, err := Source(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy.yaml")
		if err := os.WriteFile(path, source, 0o644); err != nil {
			t.Fatal(err)
		}
		if c, err := Load(path); err != nil || !reflect.DeepEqual(c, s) {
			t.Errorf("the copy of %s differs (%v)", s.Name, err)
		}
		// One kernel serves all that have bugs planted: it is built once.
		if len(s.Kernel.Patches) == 2 {
			if planted == nil {
				planted = &s.Kernel
			} else if !reflect.DeepEqual(*planted, s.Kernel) {
				t.Errorf("%s has another kernel than the other planted bugs", s.Name)
			}
		}
	}
	if planted == nil {
		t.Error("no scenario with planted bugs")
	}
	a, b := all[0].Kernel, *planted
	a.Patches, b.Patches = nil, nil
	if !reflect.DeepEqual(a, b) {
		t.Error("kcfi-seal and the planted bugs differ in more than the patches")
	}
	if _, err := Source("nosuch"); err == nil {
		t.Error("Source(nosuch): no error")
	}
}

// TestBuiltinGolden holds the built-in scenarios to testdata/builtin.txtar, byte by
// byte: kernels in caches and seed files are found by them. The long texts stand
// there as their digests.
func TestBuiltinGolden(t *testing.T) {
	const golden = "testdata/builtin.txtar"
	digest := func(text string) string { return fmt.Sprintf("sha256 %x", sha256.Sum256([]byte(text))) }
	got := &txtar.Archive{Comment: []byte("The built-in scenarios as Marshal writes them, long texts as digests. go test -run TestBuiltinGolden -update rewrites this.\n\n")}
	for _, s := range Builtin() {
		kernel, err := json.Marshal(s.Kernel)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.Kernel.Config, "\n") {
			s.Kernel.Config = digest(s.Kernel.Config)
		}
		s.Kernel.Patches = slices.Clone(s.Kernel.Patches)
		for i := range s.Kernel.Patches {
			s.Kernel.Patches[i].Text = digest(s.Kernel.Patches[i].Text)
		}
		data, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		data = fmt.Appendf(data, "# The kernel as JSON, of which its folder in the cache is named: %s\n", digest(string(kernel)))
		got.Files = append(got.Files, txtar.File{Name: s.Name, Data: data})
	}
	if *update {
		if err := os.WriteFile(golden, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("the built-in scenarios are not what they were:\n%s", diff)
	}
}

// TestPatches applies the patches of each built-in scenario to the source that
// it names.
func TestPatches(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: the built-in patches on the kernel's source, which takes half a minute to unpack")
	}
	sources := map[string]string{} // by package
	for _, s := range Builtin() {
		if len(s.Kernel.Patches) == 0 {
			continue
		}
		source := sources[s.Kernel.Package]
		if source == "" {
			source = unpackTouched(t, s.Kernel)
			sources[s.Kernel.Package] = source
		}
		work := t.TempDir()
		if err := os.CopyFS(work, os.DirFS(source)); err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Kernel.Patches {
			// Absent is what the source is already: the patch must fit, to tell.
			args := []string{"-p1", "--batch", "--forward", "--fuzz=0"}
			if p.Want == "absent" {
				args = append(args, "--dry-run")
			}
			cmd := exec.Command("patch", args...)
			cmd.Dir, cmd.Stdin = work, strings.NewReader(p.Text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", s.Name, p.File, err, out)
			}
		}
	}
	if len(sources) == 0 {
		t.Error("no scenario with a patch")
	}
}

// unpackTouched unpacks the files of a source package that the built-in patches
// change.
func unpackTouched(t *testing.T, k Kernel) string {
	tarball := "/usr/src/" + k.Package + ".tar.xz"
	if _, err := os.Stat(tarball); err != nil {
		t.Fatalf("%v: apt-get install %s", err, k.Package)
	}
	dir := t.TempDir()
	files := map[string]bool{} // tar misses a file that is asked for twice
	for _, s := range Builtin() {
		for _, p := range s.Kernel.Patches {
			for line := range strings.Lines(p.Text) {
				if file, ok := strings.CutPrefix(line, "--- a/"); ok {
					files[k.Package+"/"+strings.TrimSpace(file)] = true
				}
			}
		}
	}
	args := append([]string{"-xJf", tarball, "-C", dir, "--strip-components=1"}, slices.Sorted(maps.Keys(files))...)
	if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return dir
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"1K": 1 << 10, "128M": 128 << 20, "1024M": 1 << 30, "3G": 3 << 30, "8388607T": 8388607 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s is %d, %v, want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s is written %s and read as %d, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "M", "128", "0M", "-1M", "+1M", "1.5G", "12X", "1 M", "1m", "8388608T", "99999999999999999999K"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %d", text, s)
		}
	}
}

// A file that has no end, or one of a gigabyte, is given up early, and YAML that
// would grow in memory is refused.
func TestHostileFiles(t *testing.T) {
	dir := t.TempDir()
	long, mine := filepath.Join(dir, "long"), filepath.Join(dir, "mine.yaml")
	if err := errors.Join(os.WriteFile(long, []byte("x\n"), 0o644), os.Truncate(long, 1<<30),
		os.WriteFile(mine, []byte(edited(t, "tinyconfig", "./long")), 0o644)); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, "deep.yaml")
	if err := os.WriteFile(deep, []byte("name: "+strings.Repeat("[", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	wide := filepath.Join(dir, "wide.yaml")
	if err := os.WriteFile(wide, []byte("name: ["+strings.Repeat("a,", 1<<18)+"a]"), 0o644); err != nil {
		t.Fatal(err)
	}
	wider := filepath.Join(dir, "wider.yaml")
	if err := os.WriteFile(wider, []byte("name: ["+strings.Repeat("a,", 1<<21)+"a]"), 0o644); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Load(long); err == nil {
		t.Error("a file of a gigabyte is read")
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 20*maxFile {
		t.Errorf("a file of a gigabyte took %d MiB", (after.TotalAlloc-before.TotalAlloc)>>20)
	}
	for path, want := range map[string]string{
		wider:       wider + ": more than 16 MiB, or than 1048576 lines and commas: not a scenario",
		long:        "reading the scenario: " + long + " is longer than 16 MiB",
		"/dev/zero": "reading the scenario: /dev/zero is longer than 16 MiB",
		mine:        mine + `:4: kernel.config: reading "./long": ` + long + " is longer than 16 MiB",
		deep:        deep + ": is not YAML: exceeded max depth",
		wide:        wide + ":1: name: must be one value",
	} {
		if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %.200v, want %s", path, err, want)
		}
	}
}

// FuzzParse: what parses, marshals and parses back to the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	for _, name := range names {
		source, err := Source(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(source)
	}
	cases, err := filepath.Glob("testdata/from/*.txtar")
	if err != nil || len(cases) == 0 {
		f.Fatalf("no scenarios with from: %v", err)
	}
	for _, name := range cases {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			f.Add(file.Data)
		}
	}
	for _, text := range []string{
		`name: "x\ty"`, "a: &b c\nd: *b", "--- {}\n---\n{}\n", "!!binary aGk=",
		edited(f, "echo good\n", "echo \"\u00e9\\x00\"  \n\n\n   \ttab \n"),
		edited(f, "pass: good", "pass: '(?m)^good\\s'\n  crash: \"a|b\"\n  warnings: true\n  confirm: 0"),
		edited(f, "config: tinyconfig", "config: \"\\nCONFIG_X=y\\r\\n \"\n  set: [A=y, 'B=\"c d\"', C=0x10]"),
		edited(f, "init: |\n", "init: |\n\n    # first\n\n"),
		edited(f, "verdict:", "  # why\n  append: >\n\n    a\n    b  # no comment\n\n    c\n  # what\nverdict: # that"),
		edited(f, "verdict:", "  qemu-args: ['-x', ' y ', '# z', \"\\u2028\"]\n  append: '  a: b  '\n  limit: 1.5s\n  memory: 3G\nverdict:"),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const file = "testdata/files/fuzz.yaml"
		s, err := Parse(data, file)
		if err != nil {
			if !strings.HasPrefix(err.Error(), file+":") {
				t.Fatalf("the error names no file: %v", err)
			}
			return
		}
		text, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(text, file)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if !reflect.DeepEqual(s, again) {
			t.Fatalf("before %+v\nafter  %+v\n%s", s, again, text)
		}
		// Printed with its comments.
		d := newDecoder(&source{file: file})
		r, err := d.resolve(data, d.src)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = encode(r.whole); err != nil {
			t.Fatal(err)
		}
		if again, err = Parse(text, file); err != nil || !reflect.DeepEqual(s, again) {
			t.Fatalf("printed: %v\n%s", err, text)
		}
		// And as a part of another document.
		in, out := map[string]Scenario{"s": s}, map[string]Scenario{}
		if text, err = yaml.Marshal(in); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &out); err != nil || !reflect.DeepEqual(in, out) {
			t.Fatalf("inside another document: %v\n%s", err, text)
		}
	})
}

// What a scenario leaves out is as its architecture has it, by either of its names.
func TestArchDefaults(t *testing.T) {
	for name, want := range map[string]*arch.Arch{"x86_64": arch.X86_64, "aarch64": arch.ARM64, "arm64": arch.ARM64} {
		s := parseGood(t, edited(t, "config: tinyconfig", "config: tinyconfig\n  arch: "+name))
		if s.Kernel.Arch != want.Name || s.Kernel.Image != want.Images[0] || s.Guest.Machine != want.Machine || s.Guest.CPU != want.CPU {
			t.Errorf("arch: %s: %+v, %+v", name, s.Kernel, s.Guest)
		}
	}
}
