package kbuild

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"unlucky/host"
	"unlucky/scenarios"
)

// needApt skips a test where apt is not the machine's.
func needApt(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("NOT TESTED: source packages, as this machine has no apt: ", err)
	}
}

// machineApt gives the machine's apt these sources in place of its own: files by
// their names, of which sources.list is one.
func machineApt(t *testing.T, settings string, files map[string]string) {
	t.Helper()
	needApt(t)
	dir := t.TempDir()
	parts := filepath.Join(dir, "sources.list.d")
	if err := os.Mkdir(parts, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(parts, name)
		if name == "sources.list" {
			path = filepath.Join(dir, name)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "apt.conf")
	text := fmt.Sprintf("Dir::Etc::sourcelist \"%s/sources.list\";\nDir::Etc::sourceparts \"%s\";\n%s", dir, parts, settings)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", conf)
}

func TestMachineSources(t *testing.T) {
	const mirror, security, other = "http://debian.invalid/debian/", "http://debian.invalid/debian-security/", "http://other.invalid/debian/"
	newer := func(uri string) (out []aptSource) {
		for _, suite := range newerSuites {
			out = append(out, aptSource{uri, suite})
		}
		return out
	}
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []aptSource // nil is an error
	}{
		{"one line", map[string]string{"sources.list": "deb http://debian.invalid/debian bookworm main contrib\n"},
			append([]aptSource{{mirror, "bookworm"}}, newer(mirror)...)},
		{"one line with options and comments", map[string]string{"sources.list": `# deb http://no.invalid/debian bookworm main
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://debian.invalid/debian/ bookworm main # the mirror
deb-src http://no.invalid/debian bookworm main
`}, append([]aptSource{{mirror, "bookworm"}}, newer(mirror)...)},
		{"deb822", map[string]string{"debian.sources": `Types: deb deb-src
# a comment
URIs: http://debian.invalid/debian
Suites: bookworm bookworm-updates
Components: main
 non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://debian.invalid/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://no.invalid/debian
Suites: bookworm
Components: main
`}, append([]aptSource{{mirror, "bookworm"}, {mirror, "bookworm-updates"}, {security, "bookworm-security"}}, newer(mirror)...)},
		{"a newer release, an alias", map[string]string{"a.list": "deb http://debian.invalid/debian stable main\n", "b.list": "deb http://other.invalid/debian trixie main\n"},
			append(append([]aptSource{{mirror, "stable"}, {other, "trixie"}}, newer(mirror)...), newer(other)[1:]...)},
		{"other repositories only", map[string]string{
			"sources.list": "deb http://other.invalid/apt nodistro main\ndeb http://other.invalid/apt cloud-bookworm main\ndeb http://other.invalid/flat ./\ndeb http://debian.invalid/ubuntu noble main\ndeb http://debian.invalid/debian bookworm contrib\n"}, nil},
		{"none", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			machineApt(t, "", test.files)
			got, err := machineSources(t.Context(), "bookworm")
			var h *host.HintError
			if test.want == nil && (!errors.As(err, &h) || !strings.Contains(h.Hint, "-linux")) || test.want != nil && err != nil {
				t.Errorf("error %v", err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
		})
	}
}

// file is one that a .deb installs.
type file struct {
	name, link string
	kind       byte
	data       []byte
}

// writeDeb writes a package of any files; dpkg-deb would refuse to make some.
func writeDeb(t *testing.T, path, name, version string, files ...file) {
	t.Helper()
	archive := func(files []file) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			h := &tar.Header{Name: f.name, Linkname: f.link, Typeflag: f.kind, Size: int64(len(f.data)), Mode: 0o644}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(f.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a kernel\n", name, version)
	b := []byte("!<arch>\n")
	for _, member := range []struct {
		name string
		data []byte
	}{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar", archive([]file{{name: "./control", kind: tar.TypeReg, data: []byte(control)}})},
		{"data.tar", archive(files)},
	} {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", member.name, 0, 0, 0, "100644", len(member.data), member.data)
		if len(member.data)%2 != 0 {
			b = append(b, '\n')
		}
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// mirror is a small mirror of Debian in a folder.
type mirror struct{ dir string }

// suite makes a suite of these packages, each NAME=VERSION, with a tarball and a
// configuration that hold what FetchPackage takes for them.
func (m mirror) suite(t *testing.T, suite string, packages ...string) {
	t.Helper()
	pool, dists := filepath.Join(m.dir, "pool"), filepath.Join(m.dir, "dists", suite)
	index := filepath.Join(dists, "main", "binary-"+runtime.GOARCH, "Packages")
	if err := errors.Join(os.MkdirAll(pool, 0o755), os.MkdirAll(filepath.Dir(index), 0o755)); err != nil {
		t.Fatal(err)
	}
	var list bytes.Buffer
	for _, spec := range packages {
		name, version, _ := strings.Cut(spec, "=")
		deb := filepath.Join(pool, fmt.Sprintf("%s_%s_all.deb", name, version))
		writeDeb(t, deb, name, version, file{name: "./usr/src/" + name + ".tar.xz", kind: tar.TypeReg, data: []byte(spec)},
			file{name: "./usr/src/" + name + "/config.amd64_none.xz", kind: tar.TypeReg, data: []byte(spec + "/amd64_none")})
		data, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a kernel\nFilename: pool/%s\nSize: %d\nSHA256: %x\n\n",
			name, version, filepath.Base(deb), len(data), sha256.Sum256(data))
	}
	release := fmt.Sprintf("Origin: Debian\nSuite: %[1]s\nCodename: %[1]s\nDate: %[2]s\nArchitectures: %[3]s all\nComponents: main\nSHA256:\n %[4]x %[5]d main/binary-%[3]s/Packages\n",
		suite, time.Now().UTC().Format(time.RFC1123), runtime.GOARCH, sha256.Sum256(list.Bytes()), list.Len())
	if err := errors.Join(os.WriteFile(index, list.Bytes(), 0o644), os.WriteFile(filepath.Join(dists, "Release"), []byte(release), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// drop removes a version from the pool, as a mirror does before its lists, as
// others know them, tell.
func (m mirror) drop(t *testing.T, name, version string) {
	t.Helper()
	if err := os.Remove(filepath.Join(m.dir, "pool", fmt.Sprintf("%s_%s_all.deb", name, version))); err != nil {
		t.Fatal(err)
	}
}

// A package that is not here is fetched by the real apt from a mirror in a folder,
// and what can't be had is said.
func TestFetchPackage(t *testing.T) {
	m := mirror{t.TempDir()}
	// Nobody has signed this mirror.
	machineApt(t, "Acquire::AllowInsecureRepositories \"true\";\nAPT::Get::AllowUnauthenticated \"true\";\n"+
		"APT::Update::Pre-Invoke:: \"false a hook of the machine's ran\";\n",
		map[string]string{"sources.list": "deb file:" + m.dir + " trixie main\n"})
	m.suite(t, "trixie", "linux-source-90.1=90.1.2-1", "linux-source-90.1=90.1.3-1~bpo13+1", "other=1-1", "linux-source-90.1-rt=99-1", "linux-config-90.1=90.1.2-1")
	m.suite(t, "sid", "linux-source-90.1=90.1.3-1", "linux-source-89.9=89.9.9-1")
	m.suite(t, "experimental", "linux-source-90.2=90.2~rc1-1~exp1")
	oldDir := PackageDir
	PackageDir = t.TempDir()
	t.Cleanup(func() { PackageDir = oldDir })
	cache := t.TempDir()

	var said []string
	fetch := func(spec string) (Package, error) {
		t.Helper()
		said = nil
		p, err := FetchPackage(t.Context(), cache, spec, func(step string, done, total int64) {
			if !slices.Contains(said, step) {
				said = append(said, step)
			}
		})
		if err != nil {
			return p, err
		}
		if data, err := os.ReadFile(p.File); err != nil || string(data) != p.String() {
			t.Errorf("%s: the tarball holds %q, %v", p, data, err)
		}
		return p, nil
	}
	want := func(spec, is, suite, says string) {
		t.Helper()
		p, err := fetch(spec)
		if err != nil || p.String() != is || p.Suite != suite {
			t.Errorf("%s: %s of %q, error %v; want %s of %s", spec, p, p.Suite, err, is, suite)
		}
		if all := strings.Join(said, "\n"); !strings.Contains(all, says) || says == "" && all != "" {
			t.Errorf("%s says %q, want %q", spec, all, says)
		}
	}
	want("linux-source-90.1", "linux-source-90.1=90.1.3-1", "sid", "NOT LOOKED AT for a newer kernel: trixie-backports (")
	want("linux-source-90.1", "linux-source-90.1=90.1.3-1", "sid", "")
	want("linux-source-90.1=90.1.2-1", "linux-source-90.1=90.1.2-1", "trixie", "fetching linux-source-90.1 90.1.2-1 of trixie")
	want("linux-source-90.1", "linux-source-90.1=90.1.3-1", "sid", "")
	want("linux-source-90.1=90.1.1-1", "linux-source-90.1=90.1.3-1", "sid", "NOT TO BE HAD any more: linux-source-90.1=90.1.1-1; taking linux-source-90.1 90.1.3-1")
	want("linux-source", "linux-source-90.2=90.2~rc1-1~exp1", "experimental", "of experimental")

	m.suite(t, "trixie-backports", "linux-source-90.2=90.2-1~bpo13+1")
	want("linux-source", "linux-source-90.2=90.2-1~bpo13+1", "trixie-backports", "of trixie-backports")
	want("linux-source", "linux-source-90.2=90.2-1~bpo13+1", "trixie-backports", "") // all have been asked today

	// The mirror has dropped what its lists of this morning had.
	m.suite(t, "sid", "linux-source-90.1=90.1.3-1", "linux-source-90.0=90.0.1-1")
	if _, err := fetch("linux-source-90.0"); err != nil {
		t.Error(err)
	}
	m.drop(t, "linux-source-89.9", "89.9.9-1")
	m.suite(t, "sid", "linux-source-89.9=89.9.10-1")
	known := filepath.Join(cache, "apt", "offers.json")
	if data, err := os.ReadFile(known); err != nil || os.WriteFile(known, bytes.ReplaceAll(data, []byte("90.0"), []byte("89.9")), 0o644) != nil {
		t.Fatal(err)
	}
	want("linux-source-89.9", "linux-source-89.9=89.9.10-1", "sid", "fetching linux-source-89.9 89.9.10-1 of sid")

	if p, err := fetch("linux-source-7.7"); err == nil || !strings.Contains(err.Error(), "linux-source-7.7: no suite has a package linux-source-7.7") {
		t.Errorf("%s, error %v", p, err)
	}
	want("linux-config-90.1/amd64_none", "linux-config-90.1=90.1.2-1/amd64_none", "trixie", "fetching linux-config-90.1 90.1.2-1 of trixie")
	want("linux-config-90.1/amd64_none", "linux-config-90.1=90.1.2-1/amd64_none", "trixie", "")
	var other *host.HintError
	if p, err := fetch("linux-config-90.1/i386"); !errors.As(err, &other) || !strings.Contains(err.Error(), "configuration linux-config-90.1/i386: ") ||
		!strings.Contains(err.Error(), "holds no file usr/src/linux-config-90.1/config.i386.xz") || other.Hint != "it has amd64_none" {
		t.Errorf("%s, error %v", p, err)
	}
	if left, err := filepath.Glob(filepath.Join(cache, "apt", "archives", "*.deb")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}

	// No mirror: what is here is taken, and that is said.
	if err := os.RemoveAll(filepath.Join(m.dir, "dists")); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * listsAge)
	if err := os.Chtimes(known, long, long); err != nil {
		t.Fatal(err)
	}
	want("linux-source", "linux-source-90.2=90.2-1~bpo13+1", "trixie-backports", "NOT TO BE HAD: a newer kernel; taking linux-source-90.2=90.2-1~bpo13+1, which is here (no suite of Debian answered")
	want("linux-source-90.1=90.1.9-1", "linux-source-90.1=90.1.3-1", "sid", "NOT TO BE HAD: linux-source-90.1=90.1.9-1; taking")
	_, err := fetch("linux-source-7.7")
	var h *host.HintError
	if !errors.As(err, &h) || !strings.Contains(err.Error(), "no suite of Debian answered") || !strings.Contains(h.Hint, "proxy") {
		t.Errorf("error %v", err)
	}

	// An installed package comes first, if it is the version that is wanted.
	if err := os.WriteFile(filepath.Join(PackageDir, "linux-source-90.1.tar.xz"), []byte("linux-source-90.1=90.1.7-1"), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := WriteProgram(filepath.Join(bin, "dpkg-query"), []byte("#!/bin/sh\necho -n 90.1.7-1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	want("linux-source-90.1", "linux-source-90.1=90.1.7-1", "", "")
	want("linux-source-90.1=90.1.3-1", "linux-source-90.1=90.1.3-1", "sid", "")

	removed, err := Clean(cache, 0)
	if err != nil || len(removed) < 6 {
		t.Errorf("clean removed %v, error %v", removed, err)
	}
	// A kernel is prepared from a fetched package as from an installed one; without a
	// mirror, this one is missing.
	_, err = Prepare(t.Context(), cache, scenarios.Kernel{Package: "linux-source-90.0", Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	if !errors.As(err, &h) || !strings.Contains(err.Error(), "source package linux-source-90.0: no suite of Debian answered") {
		t.Errorf("error %v", err)
	}
}

// The real mirror of this machine, with a small package in place of a kernel's.
func TestFetchFromMirror(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: asking Debian's suites, which takes some 30 MB")
	}
	needApt(t)
	cache := t.TempDir()
	a, err := openApt(t.Context(), cache, func(string, int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	offers, _, err := a.offers(t.Context(), "hello", 0)
	if err != nil {
		t.Skip("NOT TESTED: Debian's real suites: ", err)
	}
	kernels, asked, err := a.offers(t.Context(), newestSource, listsAge)
	if err != nil || asked {
		t.Fatalf("asked again: %v, error %v", asked, err)
	}
	newest := newestOf(t.Context(), kernels, func(o offer) string { return o.Version })
	t.Logf("the newest kernel is %s %s of %s", newest.Name, newest.Version, newest.Suite)
	best := newestOf(t.Context(), offers, func(o offer) string { return o.Version })
	deb, err := a.download(t.Context(), best)
	if err != nil {
		t.Fatal(err)
	}
	if err := takeFile(t.Context(), deb, best, "hello.tar.xz", filepath.Join(cache, "hello.tar.xz")); err == nil || !strings.Contains(err.Error(), "holds no file usr/src/hello.tar.xz") {
		t.Errorf("error %v", err)
	}
}

// Whatever a .deb holds, only the tarball is written.
func TestHostileDeb(t *testing.T) {
	needApt(t)
	const path = "./usr/src/linux-source-0.1.tar.xz"
	o := offer{Name: "linux-source-0.1", Version: "0.1-1"}
	reg := func(name, text string) file { return file{name: name, kind: tar.TypeReg, data: []byte(text)} }
	for _, test := range []struct {
		name  string
		files []file
		want  string // of the error; empty for a tarball that holds "good"
	}{
		{"as it should be", []file{reg("./usr/share/doc/x", "x"), reg(path, "good"), reg("./usr/z", "z")}, ""},
		{"climbs", []file{reg("../../../../evil", "evil"), reg("/evil", "evil"), reg("./usr/src/../../evil", "evil"), reg(path, "good")}, ""},
		{"climbs to the name", []file{reg("../"+path, "evil"), reg("./usr/src/../src/linux-source-0.1.tar.xz", "evil"), reg(path, "good")}, ""},
		{"a link", []file{{name: path, kind: tar.TypeSymlink, link: "/etc/passwd"}}, "holds no file"},
		{"a hard link", []file{{name: path, kind: tar.TypeLink, link: "/etc/passwd"}}, "holds no file"},
		{"a link before the file", []file{{name: "./usr/src", kind: tar.TypeSymlink, link: "/tmp"}, reg(path, "good")}, ""},
		{"a device", []file{{name: path, kind: tar.TypeChar}}, "holds no file"},
		{"a folder", []file{{name: path + "/", kind: tar.TypeDir}}, "holds no file"},
		{"empty", nil, "holds no file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			deb, cache := filepath.Join(dir, "x.deb"), filepath.Join(dir, "a", "b", "c")
			if err := os.MkdirAll(cache, 0o755); err != nil {
				t.Fatal(err)
			}
			writeDeb(t, deb, o.Name, o.Version, test.files...)
			to := filepath.Join(cache, "linux-source-0.1.tar.xz")
			err := takeFile(t.Context(), deb, o, "linux-source-0.1.tar.xz", to)
			if test.want == "" {
				if data, rerr := os.ReadFile(to); err != nil || rerr != nil || string(data) != "good" {
					t.Errorf("%q, errors %v, %v", data, err, rerr)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v", err)
			}
			if test.want != "" && exists(to) {
				t.Error("a tarball is left")
			}
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if !d.IsDir() && path != deb && path != to {
					t.Errorf("wrote %s", path)
				}
				return err
			})
		})
	}
	deb := filepath.Join(t.TempDir(), "x.deb")
	writeDeb(t, deb, "other", o.Version, reg(path, "good"))
	if err := takeFile(t.Context(), deb, o, "linux-source-0.1.tar.xz", deb+".xz"); err == nil || !strings.Contains(err.Error(), `is "other=0.1-1", not linux-source-0.1=0.1-1`) {
		t.Errorf("another package: error %v", err)
	}
	writeDeb(t, deb, o.Name, o.Version, reg(path, strings.Repeat("good", 10000)))
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 7, 100, 3000, len(data) / 2, len(data) - 3000} {
		if err := os.WriteFile(deb, data[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := takeFile(t.Context(), deb, o, "linux-source-0.1.tar.xz", deb+".xz"); err == nil || exists(deb+".xz") {
			t.Errorf("cut at %d bytes of %d: error %v", n, len(data), err)
		}
	}
}

func TestIsSource(t *testing.T) {
	for spec, want := range map[string]bool{
		"linux-source": true, "linux-source-7.3": true, "linux-source-7.3=7.3.4-1~bpo13+1": true, "linux-source-6.12=1:6.12-1": true,
		"linux-source=7": false, "linux-source-7.3=": false, "linux-source-7": false, "linux-source-7.3=../x": false, "linux-source-7.3=-o": false,
		"linux-source-7.3-rt": false, "bash": false, "": false, "linux-source-7.3=7 8": false,
	} {
		if IsSource(spec) != want {
			t.Errorf("IsSource(%q) is %v", spec, !want)
		}
	}
	for spec, want := range map[string]bool{
		"linux-config-6.12/amd64_none_amd64": true, "linux-config-6.12=6.12.117-1~deb12u1/amd64_rt_amd64": true, "linux-config-6.12=1:6-1/a": true,
		"linux-config-6.12": false, "linux-config-6.12/": false, "linux-config-6.12/..": false, "linux-config-6.12/a/b": false, "linux-config-6.12=/a": false,
		"linux-config-6.12=-o/a": false, "linux-config/a": false, "x86_64_defconfig": false, "bash/a": false, "": false,
	} {
		if IsConfig(spec) != want {
			t.Errorf("IsConfig(%q) is %v", spec, !want)
		}
	}
	if SamePackage("linux-config-6.12/a", "linux-config-6.12/b") || !SamePackage("linux-config-6.12=1/a", "linux-config-6.12/a") {
		t.Error("SamePackage is wrong of configurations")
	}
	if !SamePackage("linux-source-7.3=7.3.4-1", "linux-source") || !SamePackage("linux-source-6.12=6.12.1-1", "linux-source-6.12") || SamePackage("evil", "linux-source") || SamePackage("linux-source-7.3", "linux-source-6.12") {
		t.Error("SamePackage is wrong")
	}
}
