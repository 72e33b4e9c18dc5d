package kbuild

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

func init() {
	// Shared by all the golden tests of the package: whoever comes first.
	if flag.Lookup("update") == nil {
		flag.Bool("update", false, "write the golden files anew")
	}
}

const (
	paddingFlag = "--randomize-section-padding="
	imageScript = "arch/any/kernel/vmlinux.lds" // marks the links of the image
	allOptions  = "CONFIG_LTO_CLANG=y\nCONFIG_X86_KERNEL_IBT=y\nCONFIG_MODULES=y\nCONFIG_KALLSYMS=y\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_BPF=y\nCONFIG_VMLINUX_MAP=y\nCONFIG_BUILDTIME_TABLE_SORT=y\n"
)

// fakeTool stands for every program that a script runs: it notes its name and
// arguments, a line a call, and makes the file that -o names.
const fakeTool = `#!/bin/sh
{
	printf '%s' "${0##*/}"
	for a; do printf ' %s' "$a"; done
	echo
} >>"${CALLS}"
case "${0##*/}" in
nm) echo '0000 T _text' ;;
pahole) echo v1.30 ;;
file-size.sh) echo 1 ;;
esac
while [ $# -gt 0 ]; do
	[ "$1" != -o ] || echo made >"$2"
	shift
done
`

// scriptRun is what a run of a link script did.
type scriptRun struct {
	links  []string // the calls of ld and cc, in order
	status int
	stdout string
	stderr string
	pwned  bool // a command that came in with the seed was run
}

// runScript runs a link script as kbuild does, in a folder of its own with
// fake tools. Without a shell the file itself is executed, as make does from
// 6.1 on.
func runScript(t *testing.T, script []byte, shell, arch, options string, env ...string) scriptRun {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := WriteProgram(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("scripts/link-vmlinux.sh", string(script), 0o755)
	write("include/config/auto.conf", options, 0o644)
	write("precious", "", 0o644)
	for _, tool := range []string{"bin/ld", "bin/cc", "bin/nm", "bin/objcopy", "bin/make", "bin/pahole", "bin/resolve_btfids",
		"scripts/kallsyms", "scripts/sorttable", "scripts/file-size.sh", "scripts/gen-btf.sh"} {
		write(tool, fakeTool, 0o755)
	}
	// A shell script that writes its second argument, or a sed script.
	if bytes.Contains(script, []byte("sed -f")) {
		write("scripts/mksysmap", "", 0o644)
	} else {
		write("scripts/mksysmap", `echo map >"$2"`+"\n", 0o755)
	}

	argv := []string{"scripts/link-vmlinux.sh", "ld", "-m elf_any -z noexecstack", "--emit-relocs -z max-page-size=0x200000", "vmlinux.unstripped"}
	if shell != "" {
		argv = append([]string{shell}, argv...)
	}
	name := argv[0]
	if strings.Contains(name, "/") {
		name = filepath.Join(dir, name)
	}
	cmd := exec.Command(name, argv[1:]...)
	cmd.Dir = dir
	calls := filepath.Join(dir, "calls")
	cmd.Env = append([]string{
		"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin", "CALLS=" + calls, "LC_ALL=C.UTF-8",
		"CC=cc", "NM=nm", "OBJCOPY=objcopy", "MAKE=make", "PAHOLE=pahole", "RESOLVE_BTFIDS=resolve_btfids",
		"CONFIG_SHELL=sh", "srctree=.", "objtree=.", "SRCARCH=" + arch, "KBUILD_LDS=" + imageScript,
		"KBUILD_VMLINUX_OBJS=init/built-in.a", "KBUILD_VMLINUX_LIBS=lib/lib.a", "CFLAGS_vmlinux=-static -Wl,--wrap,main",
		"KALLSYMS_EXTRA_PASS=1",
	}, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	run := scriptRun{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		run.pwned = true
	}
	log, err := os.ReadFile(calls)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, call := range strings.Split(strings.TrimSuffix(string(log), "\n"), "\n") {
		if strings.HasPrefix(call, "ld ") || strings.HasPrefix(call, "cc ") {
			run.links = append(run.links, call)
		}
	}
	return run
}

// checkScript runs a script with and without its patch and compares every call
// of the linker. It returns the image links of seed 7, for a golden.
func checkScript(t *testing.T, script []byte, options string) (links []string) {
	t.Helper()
	patched, err := PatchScript(script)
	if err != nil {
		t.Fatalf("PatchScript: %v", err)
	}
	checkLaw(t, script)
	for _, arch := range []string{"x86", "um"} {
		plain := runScript(t, script, "", arch, options)
		if plain.status != 0 {
			t.Fatalf("%s: the script itself fails here: %s", arch, plain.stderr)
		}
		images := 0
		for _, call := range plain.links {
			if strings.Contains(call, imageScript) {
				images++
			}
		}
		if images == 0 {
			t.Fatalf("%s: the script links no image: %q", arch, plain.links)
		}
		for _, env := range [][]string{nil, {"UNLUCKY_SEED="}} {
			got := runScript(t, patched, "", arch, options, env...)
			if diff := cmp.Diff(plain, got, cmp.AllowUnexported(scriptRun{})); diff != "" {
				t.Errorf("%s: patched, with %q (-unpatched +patched):\n%s", arch, env, diff)
			}
		}
		for _, test := range []struct{ shell, seed string }{{"", "0"}, {"", "7"}, {"", "4294967295"}, {"bash", "7"}} {
			got := runScript(t, patched, test.shell, arch, options, "UNLUCKY_SEED="+test.seed)
			if got.status != 0 || len(got.links) != len(plain.links) {
				t.Errorf("%s, seed %s: status %d, calls %q, stderr %s", arch, test.seed, got.status, got.links, got.stderr)
				continue
			}
			want := paddingFlag + test.seed
			if arch == "um" {
				want = "-Wl," + want
			}
			for i, call := range got.links {
				args := strings.Fields(call)
				if strings.Contains(call, imageScript) {
					at := slices.Index(args, want)
					if at < 0 {
						t.Errorf("%s, seed %s: %s is missing in: %s", arch, test.seed, want, call)
						continue
					}
					args = slices.Delete(args, at, at+1)
					if test.seed == "7" && test.shell == "" {
						links = append(links, call)
					}
				}
				// What is left is what it was: the flag came once, and
				// in the links of the image alone.
				if rest := strings.Fields(plain.links[i]); !slices.Equal(args, rest) {
					t.Errorf("%s, seed %s:\n got %q\nwant %q", arch, test.seed, args, rest)
				}
			}
		}
	}
	for _, seed := range []string{"7; rm precious", "$(rm precious)", "`rm precious`", "'; rm precious; '", "7\nrm precious",
		"seven", "7x", "0x7", "-1", "+7", " 7", "7 ", " ", "*", "4294967296", "9999999999", "00000000007", "99999999999999999999", "٧"} {
		got := runScript(t, patched, "", "x86", options, "UNLUCKY_SEED="+seed)
		if got.status != 1 || len(got.links) > 0 || got.pwned ||
			!strings.Contains(got.stderr, "UNLUCKY_SEED='"+seed+"' is not a seed: a number from 0 to 4294967295 was expected\n") {
			t.Errorf("UNLUCKY_SEED=%q: status %d, calls %q, a command was run: %v, stderr: %s", seed, got.status, got.links, got.pwned, got.stderr)
		}
	}
	return links
}

// checkLaw checks what holds for every script: patching is idempotent and has
// an inverse, and what is refused stays as it was.
func checkLaw(t *testing.T, script []byte) {
	t.Helper()
	before := bytes.Clone(script)
	patched, err := PatchScript(script)
	reverted, revertErr := RevertScript(script)
	if !bytes.Equal(script, before) {
		t.Fatal("the script given was written to")
	}
	if revertErr == nil && !Patched(script) && !bytes.Equal(reverted, script) {
		t.Fatalf("RevertScript changed a script that has no lines of ours:\n%s", cmp.Diff(string(script), string(reverted)))
	}
	if err != nil {
		if patched != nil {
			t.Fatalf("refused (%v), but something was returned", err)
		}
		return
	}
	if !Patched(patched) {
		t.Fatal("Patched does not know what PatchScript made")
	}
	reads := func(script []byte) bool {
		sh := exec.Command("sh", "-n")
		sh.Stdin = bytes.NewReader(script)
		return sh.Run() == nil
	}
	if reads(before) && !reads(patched) {
		t.Fatalf("sh does not read what PatchScript made:\n%s", patched)
	}
	if Patched(script) != bytes.Equal(patched, script) {
		t.Fatal("PatchScript of a patched script must change nothing, of any other something")
	}
	if again, err := PatchScript(patched); err != nil || !bytes.Equal(again, patched) {
		t.Fatalf("PatchScript twice is not once: %v\n%s", err, cmp.Diff(string(patched), string(again)))
	}
	if !Patched(script) {
		reverted = before
	}
	if got, err := RevertScript(patched); err != nil || !bytes.Equal(got, reverted) {
		t.Fatalf("RevertScript: %v\n%s", err, cmp.Diff(string(reverted), string(got)))
	}
}

// WriteProgram writes a file that can be run at once: a child that is forked
// while it is open for writing would hold it so until it runs something itself,
// and "text file busy" is what the kernel says to that.
func WriteProgram(path string, data []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, mode)
}

func scriptFixtures(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/scripts/*.txtar")
	if err != nil || len(files) < 8 {
		t.Fatalf("testdata/scripts: %d txtar files, want at least 8 (%v)", len(files), err)
	}
	scripts := make(map[string][]byte)
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Files) == 0 || a.Files[0].Name != "link-vmlinux.sh" {
			t.Fatalf("%s: the first file is not link-vmlinux.sh", file)
		}
		scripts[file] = a.Files[0].Data
	}
	return scripts
}

func TestPatchScript(t *testing.T) {
	for file, script := range scriptFixtures(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			links := strings.Join(checkScript(t, script, allOptions), "\n") + "\n"
			checkLaw(t, bytes.TrimSuffix(script, []byte("\n")))
			if flag.Lookup("update").Value.String() == "true" {
				a.Files = append(a.Files[:1], txtar.File{Name: "links of seed 7", Data: []byte(links)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(a.Files) != 2 {
				t.Fatalf("%s has no golden: run the test with -update", file)
			}
			if diff := cmp.Diff(string(a.Files[1].Data), links); diff != "" {
				t.Errorf("(-golden +got):\n%s", diff)
			}
		})
	}
}

// TestRealScripts runs the scripts of Debian's kernels, whole, with fake tools.
func TestRealScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: the link scripts of linux-source-6.1 and 6.12 take half a minute to unpack")
	}
	for _, version := range []string{"6.1", "6.12"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			tarball := "/usr/src/linux-source-" + version + ".tar.xz"
			if _, err := os.Stat(tarball); err != nil {
				t.Fatalf("%v: apt-get install linux-source-%s", err, version)
			}
			// --occurrence stops at the first one, instead of at the end.
			tar := exec.Command("tar", "-xJf", tarball, "--occurrence", "-O", "linux-source-"+version+"/scripts/link-vmlinux.sh")
			script, err := tar.Output()
			if err != nil || len(script) == 0 {
				t.Fatalf("%s: %v", tar, err)
			}
			patched, err := PatchScript(script)
			if err != nil {
				t.Fatal(err)
			}
			for _, shell := range []string{"sh", "bash"} {
				check := exec.Command(shell, "-n")
				check.Stdin = bytes.NewReader(patched)
				if out, err := check.CombinedOutput(); err != nil {
					t.Errorf("%s -n: %v: %s", shell, err, out)
				}
			}
			for _, options := range []string{allOptions, "CONFIG_KALLSYMS=y\n", ""} {
				links := checkScript(t, script, options)
				// BTF or kallsyms, two passes, one on demand, the image;
				// on two architectures.
				if want := map[string]int{allOptions: 8, "CONFIG_KALLSYMS=y\n": 8, "": 2}[options]; len(links) < want {
					t.Errorf("options %q: %d image links, want at least %d: %q", options, len(links), want, links)
				}
			}
		})
	}
}

func TestPatchScriptRefuses(t *testing.T) {
	const script = `#!/bin/sh
LDFLAGS_vmlinux="$3"
vmlinux_link()
{
	${LD} ${LDFLAGS_vmlinux} -o ${1}
}
vmlinux_link vmlinux
`
	if _, err := PatchScript([]byte(script)); err != nil {
		t.Fatalf("the script itself: %v", err)
	}
	patched, err := PatchScript([]byte(script))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, old, new, want string }{
		{"empty", script, "", "line 1: looked for #!/bin/sh"},
		{"elf", script, "\x7fELF\x02\x01\x01\x00", "line 1: a NUL byte"},
		{"crlf", "\n", "\r\n", "line 1: a carriage return"},
		{"one cr", "vmlinux\n", "vmlinux\r\n", "line 7: a carriage return"},
		{"no shebang", "#!/bin/sh\n", "", "line 1: looked for #!/bin/sh"},
		{"python", "/bin/sh", "/usr/bin/python3", "line 1: looked for #!/bin/sh"},
		{"other shell", "/bin/sh", "/bin/shiny", "line 1: looked for #!/bin/sh"},
		{"no definition", "vmlinux_link()", "image_link()", "looked for the definition of vmlinux_link(), found none"},
		{"in a comment alone", "vmlinux_link()", "# vmlinux_link()", "looked for the definition of vmlinux_link(), found none"},
		{"two", "\n}\n", "\n}\nvmlinux_link() {\n}\n", "line 7: looked for one definition of vmlinux_link(), found a second after that in line 3"},
		{"two ways", "\n}\n", "\n}\nif true; then\n  function vmlinux_link {\n  :\n}\nfi\n", "found a second"},
		{"indented", "vmlinux_link()", "\tvmlinux_link()", "line 3: looked for vmlinux_link() at the start of a line"},
		{"function", "vmlinux_link()", "function vmlinux_link", "line 3: looked for vmlinux_link() at the start of a line"},
		{"in a line", "vmlinux_link()\n{", "vmlinux_link() { :; ", "line 3: looked for vmlinux_link() at the start of a line"},
		{"subshell", "vmlinux_link()\n{", "vmlinux_link()\n(", "line 3: looked for the opening brace"},
		{"cut short", "vmlinux_link()\n{\n\t${LD} ${LDFLAGS_vmlinux} -o ${1}\n}\nvmlinux_link vmlinux\n", "vmlinux_link()", "line 3: looked for the opening brace"},
		{"no end", "}\nvmlinux_link", "\tvmlinux_link", "line 3: looked for the closing brace"},
		{"continued", "\"$3\"\n", "\"$3\" \\\n", "line 3: looked for vmlinux_link() in a line of its own"},
		{"unused", "${LDFLAGS_vmlinux}", "${LDFLAGS}", "line 3: looked for ${LDFLAGS_vmlinux} in vmlinux_link(), found none"},
		{"another name", "${LDFLAGS_vmlinux}", "${LDFLAGS_vmlinux_o} ${_LDFLAGS_vmlinux}", "line 3: looked for ${LDFLAGS_vmlinux} in vmlinux_link(), found none"},
		{"used in a comment", "${LDFLAGS_vmlinux} -o ${1}", "-o ${1} # ${LDFLAGS_vmlinux}", "line 3: looked for ${LDFLAGS_vmlinux} in vmlinux_link(), found none"},
		{"local", "\t${LD}", "\tlocal LDFLAGS_vmlinux=\n\t${LD}", "line 5: looked for a vmlinux_link() that takes LDFLAGS_vmlinux as it is"},
		{"set inside", "\t${LD}", "\tLDFLAGS_vmlinux=\"${LDFLAGS_vmlinux} -x\"\n\t${LD}", "line 5: looked for a vmlinux_link() that takes LDFLAGS_vmlinux as it is"},
		{"set after", "\n}\n", "\n}\nLDFLAGS_vmlinux=\"$3\"\n", "line 7: looked for LDFLAGS_vmlinux set before vmlinux_link() (line 3) and used in it alone"},
		{"ld -r", "vmlinux_link()", "modpost_link()\n{\n\t${LD} ${LDFLAGS_vmlinux} -r -o ${1}\n}\nvmlinux_link()", "line 5: looked for LDFLAGS_vmlinux set before vmlinux_link() (line 7) and used in it alone"},
		{"never called", "vmlinux_link vmlinux\n", "", "line 3: looked for a call of vmlinux_link, found none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := []byte(strings.ReplaceAll(script, test.old, test.new))
			if string(changed) == script {
				t.Fatal("the test changes nothing")
			}
			checkLaw(t, changed)
			if _, err := PatchScript(changed); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}

	for _, test := range []struct {
		name, script, want string
		reverts            bool
	}{
		{"edited", strings.Replace(string(patched), "4294967295", "100", 1), `line 3: "# unlucky patch:" is not followed by the lines that this version writes`, false},
		{"twice", strings.Replace(script, "vmlinux_link()", blockHead+blockBody+blockHead+blockBody+"vmlinux_link()", 1), `line 21: "# unlucky patch:" is not followed`, false},
		{"half", strings.Replace(string(patched), blockBody, "", 1), `line 3: "# unlucky patch:" is not followed`, false},
		{"elsewhere", script + blockHead + blockBody, "line 8: the lines of an earlier patch are no longer directly before vmlinux_link()", true},
	} {
		t.Run("patched "+test.name, func(t *testing.T) {
			checkLaw(t, []byte(test.script))
			if _, err := PatchScript([]byte(test.script)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("PatchScript: got %v, want %s", err, test.want)
			}
			got, err := RevertScript([]byte(test.script))
			if test.reverts != (err == nil) || test.reverts != Patched([]byte(test.script)) || test.reverts && string(got) != script {
				t.Errorf("RevertScript: %v, %s", err, got)
			}
		})
	}
}

// quotedScript has all that is looked for in a text that it prints, and that
// would end at a line of the block.
const quotedScript = `#!/bin/sh
LDFLAGS_vmlinux="$3"
cat <<esac
vmlinux_link()
{
	${LD} ${LDFLAGS_vmlinux} -o ${1}
}
vmlinux_link vmlinux )
esac
`

// FuzzPatchScript: any text is refused and stays as it is, or is patched so that
// patching again changes nothing, reverting gives the same bytes, and sh reads
// it if it read the original.
func FuzzPatchScript(f *testing.F) {
	for _, script := range scriptFixtures(f) {
		f.Add(script)
		patched, err := PatchScript(script)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(patched)
		f.Add(bytes.Replace(patched, []byte(blockBody), []byte(blockMark+" before: mode 0755 mtime 1700000000123456789 sha256 "+strings.Repeat("0f", 32)+"\n"+blockBody), 1))
		f.Add(bytes.ReplaceAll(script, []byte("\n"), []byte("\r\n")))
		f.Add(append([]byte(blockHead+blockBody), script...))
	}
	f.Add([]byte(quotedScript))
	f.Fuzz(func(t *testing.T, script []byte) { checkLaw(t, script) })
}

func TestPatchInPlace(t *testing.T) {
	script := scriptFixtures(t)["testdata/scripts/v6.13.txtar"]
	was := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	tree := func(t *testing.T, script []byte, mode os.FileMode) (dir, path string) {
		t.Helper()
		dir = t.TempDir()
		path = filepath.Join(dir, "scripts", "link-vmlinux.sh")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, script, 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(path, 1234, 5678); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Log("not root: that a foreign owner is kept is not seen here")
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		if err := os.Chtimes(path, was, was); err != nil {
			t.Fatal(err)
		}
		return dir, path
	}
	type file struct {
		text     string
		mode     os.FileMode
		uid, gid uint32
		mtime    int64 // ns
		entries  int   // in the folder: nothing is left there
	}
	look := func(t *testing.T, path string) file {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		return file{string(text), info.Mode(), stat.Uid, stat.Gid, info.ModTime().UnixNano(), len(entries)}
	}
	do := func(t *testing.T, what func(string) (bool, error), dir string, want bool) {
		t.Helper()
		if changed, err := what(dir); err != nil || changed != want {
			t.Fatalf("changed: %v, %v; want %v", changed, err, want)
		}
	}

	for _, mode := range []os.FileMode{0o755, 0o775, 0o700, 0o644} {
		t.Run(fmt.Sprintf("%04o", mode), func(t *testing.T) {
			dir, path := tree(t, script, mode)
			before := look(t, path)
			do(t, Revert, dir, false)
			do(t, Patch, dir, true)
			patched := look(t, path)
			if !Patched([]byte(patched.text)) {
				t.Error("not patched")
			}
			if patched.mtime == before.mtime {
				t.Error("the old time stayed: make would not link again")
			}
			want := before
			want.text, want.mtime = patched.text, patched.mtime
			if patched != want {
				t.Errorf("patched: got %+v, want %+v", patched, want)
			}
			checkLaw(t, []byte(patched.text))
			do(t, Patch, dir, false)
			if again := look(t, path); again != patched {
				t.Errorf("patched twice: got %+v, want %+v", again, patched)
			}
			if err := os.Chmod(path, 0o711); err != nil {
				t.Fatal(err)
			}
			do(t, Revert, dir, true)
			if after := look(t, path); after != before {
				t.Errorf("reverted: got %+v, want %+v", after, before)
			}
			do(t, Revert, dir, false)
		})
	}

	t.Run("changed since", func(t *testing.T) {
		dir, path := tree(t, script, 0o755)
		do(t, Patch, dir, true)
		edited := append([]byte(look(t, path).text), "# more\n"...)
		if err := os.WriteFile(path, edited, 0); err != nil {
			t.Fatal(err)
		}
		do(t, Revert, dir, true)
		after := look(t, path)
		if after.text != string(script)+"# more\n" || after.mtime == was.UnixNano() || after.mode != 0o755 {
			t.Errorf("got %+v, want the change kept and a new time", after)
		}
	})
	t.Run("patched by PatchScript", func(t *testing.T) {
		patched, err := PatchScript(script)
		if err != nil {
			t.Fatal(err)
		}
		dir, path := tree(t, patched, 0o755)
		do(t, Patch, dir, false)
		do(t, Revert, dir, true)
		if after := look(t, path); after.text != string(script) || after.mode != 0o755 {
			t.Errorf("got %+v", after)
		}
	})
	t.Run("refused", func(t *testing.T) {
		edited := bytes.Replace(script, []byte("vmlinux_link()"), []byte(blockHead+"vmlinux_link()"), 1)
		for _, text := range [][]byte{nil, []byte("#!/bin/sh\necho no\n"), edited} {
			dir, path := tree(t, text, 0o755)
			before := look(t, path)
			if changed, err := Patch(dir); err == nil || changed || !strings.Contains(err.Error(), path+" is left as it is: ") {
				t.Errorf("Patch: %v, %v", changed, err)
			}
			if changed, err := Revert(dir); changed || (err != nil) != bytes.Equal(text, edited) {
				t.Errorf("Revert: %v, %v", changed, err)
			}
			if after := look(t, path); after != before {
				t.Errorf("got %+v, want %+v", after, before)
			}
		}
	})
	t.Run("symbolic link", func(t *testing.T) {
		_, path := tree(t, script, 0o755)
		before := look(t, path)
		for _, test := range []struct{ link, target string }{
			{"scripts/link-vmlinux.sh", path},
			{"scripts", filepath.Dir(path)},
			{"scripts/link-vmlinux.sh", "nowhere"},
		} {
			dir := t.TempDir()
			link := filepath.Join(dir, test.link)
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(test.target, link); err != nil {
				t.Fatal(err)
			}
			for name, what := range map[string]func(string) (bool, error){"Patch": Patch, "Revert": Revert} {
				if changed, err := what(dir); err == nil || changed || !strings.Contains(err.Error(), link+" is a symbolic link to "+test.target) {
					t.Errorf("%s: %v, %v", name, changed, err)
				}
			}
			if target, err := os.Readlink(link); err != nil || target != test.target {
				t.Errorf("the link: %q, %v", target, err)
			}
		}
		if after := look(t, path); after != before {
			t.Errorf("got %+v, want %+v", after, before)
		}
	})
	t.Run("no tree", func(t *testing.T) {
		for name, what := range map[string]func(string) (bool, error){"Patch": Patch, "Revert": Revert} {
			if changed, err := what(t.TempDir()); err == nil || changed || !strings.Contains(err.Error(), "is not the top folder of a kernel source tree") {
				t.Errorf("%s: %v, %v", name, changed, err)
			}
		}
	})
}
