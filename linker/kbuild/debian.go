package kbuild

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"unlucky/host"
)

// Debian's kernels, their sources and their configurations, as packages: one that is
// installed, or one that apt fetches into the cache from any suite of the machine's
// own mirror. For that apt runs with sources, lists and archives of its own below
// the cache: it needs no root, and what the machine's apt has stays as it is.
//
// A package is asked for as apt takes it, NAME or NAME=VERSION, and a configuration
// with the flavour behind that: linux-config-6.12/amd64_none_amd64. linux-source,
// which in Debian depends on the newest linux-source-X.Y of its suite, is here
// the newest of all suites.
//
// linux-source-X.Y is of architecture all and holds one file,
// /usr/src/linux-source-X.Y.tar.xz: that of a newer suite serves as it is.
// linux-config-X.Y holds /usr/src/linux-config-X.Y/config.FLAVOUR.xz. A
// mirror keeps only the newest point releases, so a version may be gone.

// newestSource is the package that stands for the newest kernel.
const newestSource = "linux-source"

// newerSuites are the suites in which newer kernels come, besides those that the
// machine has. Debian's archive serves all of them by one mirror
// (https://wiki.debian.org/DebianReleases): stable and what is backported to it,
// the development branch, and what is not ready for that.
var newerSuites = []string{"trixie", "trixie-backports", "sid", "experimental"}

// aliases are names of a release that a machine's sources may have in place of its
// codename.
var aliases = []string{"oldstable", "stable", "testing", "unstable"}

// debianKeyring verifies all suites; a machine without it has the keys elsewhere,
// or is refused by apt.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// ownSource is what helps where no package can be had.
const ownSource = "unpack a kernel's source yourself, and give the tree with -linux"

// listsAge is how long apt's lists are believed: Debian's mirrors are brought up
// to date four times a day.
const listsAge = 24 * time.Hour

// Package is a file of a Debian package that is on this machine.
type Package struct {
	Name, Version string
	Flavour       string // of a configuration; empty for a source
	Suite         string // that it was fetched from, empty for an installed one
	File          string // the source's tarball, or the configuration, both packed by xz
}

// String is what FetchPackage takes for it.
func (p Package) String() string {
	if p.Flavour != "" {
		return p.Name + "=" + p.Version + "/" + p.Flavour
	}
	return p.Name + "=" + p.Version
}

// From says where a package came from.
func (p Package) From() string {
	if p.Suite == "" {
		return "installed"
	}
	return "from " + p.Suite
}

// PackageDir is where Debian's packages put sources and configurations; tests have
// small ones elsewhere.
var PackageDir = "/usr/src"

var (
	kernelSource = regexp.MustCompile(`^linux-source-\d+\.\d+$`)
	debVersion   = regexp.MustCompile(`^[0-9][A-Za-z0-9.+:~-]*$`) // deb-version(7)
	kernelConfig = regexp.MustCompile(`^linux-config-\d+\.\d+(?:=([^/]+))?/[a-z0-9][a-z0-9_-]*$`)
	configFile   = regexp.MustCompile(`/config\.([a-z0-9_-]+)\.xz$`)
)

// request is a package that is asked for: its name, version and flavour, the last
// two only where they are given.
type request struct{ name, version, flavour string }

func parseRequest(spec string) (r request) {
	spec, r.flavour, _ = strings.Cut(spec, "/")
	r.name, r.version, _ = strings.Cut(spec, "=")
	return r
}

// spec is what parseRequest takes.
func (r request) spec() string {
	spec := r.name
	if r.version != "" {
		spec += "=" + r.version
	}
	if r.flavour != "" {
		spec += "/" + r.flavour
	}
	return spec
}

// String says what is asked for.
func (r request) String() string {
	if r.flavour != "" {
		return "configuration " + r.spec()
	}
	return "source package " + r.spec()
}

// file is the one file of a package of this name that is wanted, below PackageDir.
func (r request) file(name string) string {
	if r.flavour != "" {
		return filepath.Join(name, "config."+r.flavour+".xz")
	}
	return name + ".tar.xz"
}

// IsSource tells whether spec is what FetchPackage takes for a kernel's source.
func IsSource(spec string) bool {
	name, version, pinned := strings.Cut(spec, "=")
	return name == newestSource && !pinned || kernelSource.MatchString(name) && (!pinned || debVersion.MatchString(version))
}

// IsConfig tells whether spec is what FetchPackage takes for a configuration.
func IsConfig(spec string) bool {
	m := kernelConfig.FindStringSubmatch(spec)
	return m != nil && (m[1] == "" || debVersion.MatchString(m[1]))
}

// readConfig is the text of a configuration.
func readConfig(ctx context.Context, p Package) (string, error) {
	text, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), "xz", "-dc", p.File)
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", p, err)
	}
	return string(text), nil
}

// SamePackage tells whether spec is a package that wanted asks for, in any
// version.
func SamePackage(spec, wanted string) bool {
	is, r := parseRequest(spec), parseRequest(wanted)
	return matches(is.name, r.name) && is.flavour == r.flavour
}

// matches tells whether a package of this name is one that was asked for.
func matches(name, wanted string) bool {
	if wanted == newestSource {
		return kernelSource.MatchString(name)
	}
	return name == wanted
}

// packagesHere are the packages on the machine that are asked for, in any version: the
// installed ones, then the fetched, the newest first.
func packagesHere(ctx context.Context, cache string, r request) ([]Package, error) {
	var installed, fetched []Package
	files, _ := filepath.Glob(filepath.Join(PackageDir, r.file("*")))
	for _, path := range files {
		name, _ := filepath.Rel(PackageDir, path)
		name = strings.TrimSuffix(name, strings.TrimPrefix(r.file("*"), "*"))
		if !matches(name, r.name) {
			continue
		}
		version, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), "dpkg-query", "-W", "-f", "${Version}", name)
		if err == nil && len(version) > 0 { // else nobody knows its version
			installed = append(installed, Package{Name: name, Version: string(version), Flavour: r.flavour, File: path})
		}
	}
	entries, err := os.ReadDir(cache)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		name, version, ok := strings.Cut(e.Name(), "=")
		if !ok || !matches(name, r.name) {
			continue
		}
		p := fetchedPackage(cache, name, version, r)
		suite, err := os.ReadFile(filepath.Join(cache, e.Name(), "suite"))
		if err == nil && exists(p.File) {
			p.Suite = string(suite)
			fetched = append(fetched, p)
		}
	}
	for _, list := range [][]Package{installed, fetched} {
		slices.SortFunc(list, func(a, b Package) int { return -compareVersions(ctx, a.Version, b.Version) })
	}
	return append(installed, fetched...), nil
}

// fetchedPackage is where the cache has what is asked for of a package, or would have it.
func fetchedPackage(cache, name, version string, r request) Package {
	file := filepath.Join(cache, name+"="+version, filepath.Base(r.file(name)))
	return Package{Name: name, Version: version, Flavour: r.flavour, File: file}
}

// compareVersions orders versions as dpkg does.
func compareVersions(ctx context.Context, a, b string) int {
	for i, relation := range []string{"lt", "eq"} {
		if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, relation, b).Run() == nil {
			return i - 1
		}
	}
	return 1
}

func newestOf[P any](ctx context.Context, list []P, version func(P) string) P {
	return slices.MaxFunc(list, func(a, b P) int { return compareVersions(ctx, version(a), version(b)) })
}

// findPackage is the package on this machine that FetchPackage would return if
// nothing newer were to be had.
func findPackage(ctx context.Context, cache string, r request) (Package, error) {
	here, err := packagesHere(ctx, cache, r)
	if err != nil {
		return Package{}, err
	}
	if r.version != "" {
		here = slices.DeleteFunc(here, func(p Package) bool { return p.Version != r.version })
	}
	switch {
	case len(here) == 0:
		return Package{}, host.Hint(fmt.Errorf("%s is not here", r), "unlucky fetch %s", r.spec())
	case r.name == newestSource:
		return newestOf(ctx, here, func(p Package) string { return p.Version }), nil
	}
	return here[0], nil
}

// FetchPackage returns a package, NAME or NAME=VERSION, with /FLAVOUR behind it for a
// configuration, that is on this machine, or else fetches it. The newest kernel is looked for once a day. What
// can't be had is said, and the next best taken: a version that the mirror does
// not have any more is another one then.
func FetchPackage(ctx context.Context, cache, spec string, progress Progress) (Package, error) {
	r := parseRequest(spec)
	if r.name != newestSource {
		if p, err := findPackage(ctx, cache, r); err == nil || ctx.Err() != nil {
			return p, err
		}
	}
	p, err := fetchPackage(ctx, cache, r, progress)
	if err == nil || ctx.Err() != nil {
		return p, err
	}
	p, none := findPackage(ctx, cache, request{name: r.name, flavour: r.flavour})
	if none != nil {
		return p, fmt.Errorf("%s: %w", r, err)
	}
	what := spec
	if r.name == newestSource {
		what = "a newer kernel"
	}
	progress(fmt.Sprintf("NOT TO BE HAD: %s; taking %s, which is here (%v)", what, p, err), 0, 0)
	return p, nil
}

// fetchPackage takes the package from the mirror, unless what the mirror has is
// here.
func fetchPackage(ctx context.Context, cache string, r request, progress Progress) (Package, error) {
	a, err := openApt(ctx, cache, progress)
	if err != nil {
		return Package{}, err
	}
	defer a.close()
	for age := listsAge; ; age = 0 {
		offers, asked, err := a.offers(ctx, r.name, age)
		if err != nil {
			return Package{}, err
		}
		best := newestOf(ctx, offers, func(o offer) string { return o.Version })
		if i := slices.IndexFunc(offers, func(o offer) bool { return o.Version == r.version }); i >= 0 {
			best = offers[i]
		} else if r.version != "" && !asked {
			continue // the lists may be too old for it
		} else if r.version != "" {
			progress(fmt.Sprintf("NOT TO BE HAD any more: %s; taking %s %s", r.spec(), best.Name, best.Version), 0, 0)
		}
		if here, err := findPackage(ctx, cache, request{best.Name, best.Version, r.flavour}); err == nil {
			return here, nil
		}
		if here, err := findPackage(ctx, cache, request{name: r.name}); err == nil && r.name == newestSource && compareVersions(ctx, here.Version, best.Version) > 0 {
			return here, nil
		}
		p, err := a.fetch(ctx, cache, best, r)
		if err == nil || asked || ctx.Err() != nil {
			return p, err
		}
		// The mirror may have dropped it since the lists were made.
	}
}

// privateApt is apt with sources, lists and archives of its own.
type privateApt struct {
	dir      string // in the cache
	foreign  string // the architecture whose packages it fetches, by Debian's name; empty for the machine's
	asks     string // the step of bringing its lists up to date, for people
	lock     *flock.Flock
	progress Progress
}

// openApt makes the cache's apt, and locks it against a second one. Where the machine
// has no apt it says what else to do.
func openApt(ctx context.Context, cache string, progress Progress) (*privateApt, error) {
	return (&privateApt{
		dir: filepath.Join(cache, "apt"), progress: progress,
		asks: "asking Debian's suites for kernels (some 30 MB the first time)",
	}).open(ctx)
}

// open makes its folder and locks it.
func (a *privateApt) open(ctx context.Context) (*privateApt, error) {
	for _, program := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, host.Hint(fmt.Errorf("fetching a Debian source package: there is no %s here", program), ownSource)
		}
	}
	for _, dir := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	a.lock = flock.New(filepath.Join(a.dir, "lock"))
	if free, err := a.lock.TryLock(); err != nil {
		return nil, err
	} else if !free {
		a.progress("waiting for another unlucky that fetches a package", 0, 0)
		if _, err := a.lock.TryLockContext(ctx, time.Second); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	return a, os.Chtimes(a.dir, now, now)
}

// close lets others use it. What apt has made of the lists takes more room than
// they do, and seconds to make.
func (a *privateApt) close() {
	os.Remove(a.path("pkgcache.bin"))
	os.Remove(a.path("srcpkgcache.bin"))
	a.lock.Unlock()
}

// aptVariables are those of the user's environment by which apt finds a proxy and
// a configuration.
var aptVariables = []string{"APT_CONFIG", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}

func aptEnvironment(extra ...string) []string {
	env := host.Environment(os.Getenv("PATH"))
	for _, name := range aptVariables {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, extra...)
}

// apt runs one of apt's programs with that configuration, and passes its
// progress on as that of step.
func (a *privateApt) apt(ctx context.Context, dir, step string, argv ...string) ([]byte, error) {
	status := &aptStatus{report: func(percent int64) { a.progress(step, percent, 100) }}
	err := host.Run(ctx, dir, aptEnvironment("APT_CONFIG="+a.path("apt.conf")), status, argv...)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w%s", strings.Join(argv, " "), err, host.LastLines(status.complaints(), 6))
	}
	return status.log.Bytes(), err
}

func (a *privateApt) path(name string) string { return filepath.Join(a.dir, name) }

// aptStatus takes apt's output apart: what APT::Status-Fd says of the download,
// and all else.
type aptStatus struct {
	line, log bytes.Buffer
	report    func(percent int64)
}

func (s *aptStatus) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, tail, whole := bytes.Cut(rest, []byte("\n"))
		s.line.Write(line)
		if !whole {
			return len(b), nil
		}
		// dlstatus:1:34.5076:Retrieving file 1 of 1 (2s remaining)
		if fields := strings.SplitN(s.line.String(), ":", 4); len(fields) == 4 && fields[0] == "dlstatus" {
			if percent, err := strconv.ParseFloat(fields[2], 64); err == nil && percent >= 0 && percent <= 100 {
				s.report(int64(percent))
			}
		} else {
			s.log.Write(append(s.line.Bytes(), '\n'))
		}
		s.line.Reset()
		rest = tail
	}
}

// complaints are apt's first errors, or else all that it said.
func (s *aptStatus) complaints() []byte {
	if lines := complaint.FindAll(s.log.Bytes(), 2); lines != nil {
		return bytes.Join(lines, []byte("\n"))
	}
	return s.log.Bytes()
}

var complaint = regexp.MustCompile(`(?m)^E: .*$`)

// aptSource is one suite at a mirror.
type aptSource struct{ uri, suite string }

// machineSources are the suites of Debian that the machine's own sources name, as
// apt reads them, and the suites of newer kernels at the same mirrors.
func machineSources(ctx context.Context, release string) ([]aptSource, error) {
	out, err := host.Output(ctx, "", aptEnvironment(), "apt-get", "indextargets", "--no-release-info",
		"--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	releases := append(slices.Concat(aliases, newerSuites), release)
	var own, newer []aptSource
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		base, _, _ := strings.Cut(f[1], "-")
		if !slices.Contains(releases, base) {
			continue
		}
		own = append(own, aptSource{f[0], f[1]})
		if base != f[1] { // security updates have a mirror of their own
			continue
		}
		for _, suite := range newerSuites {
			newer = append(newer, aptSource{f[0], suite})
		}
	}
	var all []aptSource
	for _, s := range append(own, newer...) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil, host.Hint(errors.New("apt's sources name no mirror of Debian to fetch a kernel's source from"), ownSource)
	}
	return all, nil
}

// machineRelease is the codename in os-release, "bookworm".
func machineRelease() string {
	data, _ := os.ReadFile("/etc/os-release")
	if m := regexp.MustCompile(`(?m)^VERSION_CODENAME="?([a-z]+)"?$`).FindSubmatch(data); m != nil {
		return string(m[1])
	}
	return ""
}

// machineSetting are the lines of the machine's configuration that it takes to
// reach the mirror, such as a proxy. All else stays out: hooks, above all.
var machineSetting = regexp.MustCompile(`(?m)^(Acquire::|APT::Get::AllowUnauthenticated )[^"\n]*"[^"\n]*";$`)

// configure writes apt's configuration and sources.
func (a *privateApt) configure(ctx context.Context) ([]aptSource, error) {
	sources, err := machineSources(ctx, machineRelease())
	if err != nil {
		return nil, err
	}
	if a.foreign != "" { // what the machine would take of its own suites
		own := slices.DeleteFunc(slices.Clone(sources), func(s aptSource) bool { return s.suite != machineRelease() })
		if len(own) > 0 {
			sources = own
		}
	}
	dump, err := host.Output(ctx, "", aptEnvironment(), "apt-config", "dump")
	if err != nil {
		return nil, err
	}
	var conf, list bytes.Buffer
	for _, line := range machineSetting.FindAllString(string(dump), -1) {
		if !strings.HasPrefix(line, "Acquire::IndexTargets") { // indexes that only other programs read
			fmt.Fprintln(&conf, line)
		}
	}
	for _, set := range [][2]string{
		{"Dir::Etc::main", "/dev/null"}, {"Dir::Etc::parts", "/dev/null"},
		{"Dir::Etc::preferences", "/dev/null"}, {"Dir::Etc::preferencesparts", "/dev/null"},
		{"Dir::Etc::sourcelist", a.path("debian.sources")}, {"Dir::Etc::sourceparts", "/dev/null"},
		{"Dir::State", a.dir}, {"Dir::State::lists", a.path("lists")}, {"Dir::State::status", a.path("status")},
		{"Dir::Cache", a.dir}, {"Dir::Cache::archives", a.path("archives")},
		{"Dir::Cache::pkgcache", a.path("pkgcache.bin")}, {"Dir::Cache::srcpkgcache", a.path("srcpkgcache.bin")},
		{"Acquire::Languages", "none"}, {"Acquire::GzipIndexes", "true"},
	} {
		fmt.Fprintf(&conf, "%s \"%s\";\n", set[0], set[1])
	}
	if a.foreign != "" {
		fmt.Fprintf(&conf, "APT::Architecture \"%s\";\nAPT::Architectures:: \"%[1]s\";\n", a.foreign)
	}
	for _, s := range sources {
		fmt.Fprintf(&list, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nTargets: Packages\n", s.uri, s.suite)
		if exists(debianKeyring) {
			fmt.Fprintf(&list, "Signed-By: %s\n", debianKeyring)
		}
		fmt.Fprintln(&list)
	}
	return sources, errors.Join(
		replaceFile(a.path("apt.conf"), conf.Bytes(), 0o644),
		replaceFile(a.path("debian.sources"), list.Bytes(), 0o644),
		replaceFile(a.path("status"), nil, 0o644))
}

// offer is a package that a suite has.
type offer struct{ Name, Version, Suite string }

// offers are the packages of this name in all suites, by lists of at most this
// age, and whether the suites were asked for that. It is an error if there is none.
func (a *privateApt) offers(ctx context.Context, name string, age time.Duration) (offers []offer, asked bool, err error) {
	path := a.path("offers.json")
	only := func(known []offer) []offer {
		return slices.DeleteFunc(known, func(o offer) bool { return !matches(o.Name, name) })
	}
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) < age {
		var known []offer
		if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &known) == nil && len(only(slices.Clone(known))) > 0 {
			return only(known), false, nil
		}
	}
	known, all, err := a.update(ctx, name)
	if err != nil {
		return nil, true, err
	}
	if all { // else they are asked again the next time
		data, err := json.Marshal(known)
		if err == nil {
			err = os.WriteFile(path, data, 0o644) // its time counts, also where nothing is new
		}
		if err != nil {
			return nil, true, err
		}
	}
	if offers = only(known); len(offers) == 0 {
		return nil, true, host.Hint(fmt.Errorf("no suite has a package %s", name), "package: %s is the newest kernel that a suite has", newestSource)
	}
	return offers, true, nil
}

// answered are the suites that apt-get update has reached: it tells of each file
// that it gets it or has it already, and of some later that it failed.
func answered(log []byte) map[string]bool {
	got := map[string]string{} // the suite, by the number of its file
	for _, m := range releaseFile.FindAllSubmatch(log, -1) {
		delete(got, string(m[2]))
		if word := string(m[1]); word == "Get" || word == "Hit" {
			got[string(m[2])] = string(m[3])
		}
	}
	suites := map[string]bool{}
	for _, suite := range got {
		suites[suite] = true
	}
	return suites
}

var releaseFile = regexp.MustCompile(`(?m)^(Hit|Get|Ign|Err):(\d+) \S+ (\S+) (?:InRelease|Release)\b`)

// update brings the lists up to date and reads the kernels' sources in them, and
// the package of this name. Suites that did not answer are told; all is false then.
func (a *privateApt) update(ctx context.Context, name string) (known []offer, all bool, err error) {
	sources, err := a.configure(ctx)
	if err != nil {
		return nil, false, err
	}
	step := a.asks
	a.progress(step, 0, 100)
	log, err := a.apt(ctx, "", step, "apt-get", "-q", "-o", "APT::Status-Fd=1", "-o", "APT::Update::Error-Mode=any", "update")
	if ctx.Err() != nil {
		return nil, false, ctx.Err()
	}
	reached := answered(log)
	var silent []string
	for _, s := range sources {
		if !reached[s.suite] && !slices.Contains(silent, s.suite) {
			silent = append(silent, s.suite)
		}
	}
	if err == nil && len(reached) == 0 {
		err = fmt.Errorf("apt-get update said:%s", host.LastLines(log, 6))
	}
	if len(reached) == 0 {
		return nil, false, host.Hint(fmt.Errorf("no suite of Debian answered: %w", err), "look at the network and at apt's proxy, or %s", ownSource)
	}
	if silent != nil {
		a.progress(fmt.Sprintf("NOT LOOKED AT for a newer kernel: %s (%v)", strings.Join(silent, ", "), err), 0, 0)
	}
	names, err := a.apt(ctx, "", step, "apt-cache", "pkgnames", name)
	if err != nil {
		return nil, false, err
	}
	kernels, err := a.apt(ctx, "", step, "apt-cache", "pkgnames", newestSource+"-")
	if err != nil {
		return nil, false, err
	}
	query := []string{"apt-cache", "madison"}
	for _, n := range strings.Fields(string(names) + string(kernels)) {
		if (matches(n, name) || kernelSource.MatchString(n)) && !slices.Contains(query, n) {
			query = append(query, n)
		}
	}
	if len(query) == 2 {
		return nil, silent == nil, nil
	}
	table, err := a.apt(ctx, "", step, query...)
	return readMadison(table), silent == nil, err
}

// readMadison reads apt-cache's table of versions:
//
//	linux-source-7.3 | 7.3.4-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages
func readMadison(table []byte) (offers []offer) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		column := strings.Split(lines.Text(), " | ")
		if len(column) != 3 {
			continue
		}
		from := strings.Fields(column[2])
		if len(from) != 4 || from[3] != "Packages" {
			continue
		}
		suite, _, _ := strings.Cut(from[1], "/")
		o := offer{strings.TrimSpace(column[0]), strings.TrimSpace(column[1]), suite}
		// One version in several suites is the first one's: the machine's own come first.
		if !slices.ContainsFunc(offers, func(p offer) bool { return p.Name == o.Name && p.Version == o.Version }) {
			offers = append(offers, o)
		}
	}
	return offers
}

// fetch downloads a package and takes its tarball into the cache.
func (a *privateApt) fetch(ctx context.Context, cache string, o offer, r request) (Package, error) {
	deb, err := a.download(ctx, o)
	if err != nil {
		return Package{}, err
	}
	defer os.Remove(deb)
	p := fetchedPackage(cache, o.Name, o.Version, r)
	p.Suite = o.Suite
	dir := filepath.Dir(p.File)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Package{}, err
	}
	lock := flock.New(filepath.Join(dir, "lock")) // against being removed
	if err := lock.RLock(); err != nil {
		return Package{}, err
	}
	defer lock.Unlock()
	if err := os.WriteFile(filepath.Join(dir, "suite"), []byte(o.Suite), 0o644); err != nil {
		return Package{}, err
	}
	return p, takeFile(ctx, deb, o, r.file(o.Name), p.File)
}

// download fetches the .deb of an offer, which apt verifies, and returns its
// path.
func (a *privateApt) download(ctx context.Context, o offer) (string, error) {
	step := fmt.Sprintf("fetching %s %s of %s (a kernel's source has some 160 MB, its configurations 2; apt's own sources stay as they are)", o.Name, o.Version, o.Suite)
	if a.foreign != "" {
		step = fmt.Sprintf("fetching %s %s of %s for %s", o.Name, o.Version, o.Suite, a.foreign)
	}
	a.progress(step, 0, 100)
	old, _ := filepath.Glob(a.path("archives/*.deb")) // of a run that was killed
	for _, path := range old {
		os.Remove(path)
	}
	if _, err := a.apt(ctx, a.path("archives"), step, "apt-get", "-q", "-o", "APT::Status-Fd=1", "download", o.Name+"="+o.Version); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(a.path("archives/*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s=%s left %d packages in %s", o.Name, o.Version, len(debs), a.path("archives"))
	}
	return debs[0], nil
}

// takeFile copies one file out of a .deb, name below /usr/src.
func takeFile(ctx context.Context, deb string, o offer, name, to string) error {
	return takeOne(ctx, deb, o, to, 0o644, "usr/src/"+name)
}

// takeOne copies the first file of some names out of a .deb, and nothing else: whatever
// a package holds, only the file to is written.
func takeOne(ctx context.Context, deb string, o offer, to string, mode os.FileMode, names ...string) error {
	is, err := host.Output(ctx, "", host.Environment(os.Getenv("PATH")), "dpkg-deb", "--show", "--showformat=${Package}=${Version}", deb)
	if err != nil {
		return err
	}
	if want := o.Name + "=" + o.Version; string(is) != want {
		return fmt.Errorf("%s is %q, not %s", deb, is, want)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	files, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cmd.Process.Kill() // it may have more to tell
		cmd.Wait()
	}()
	var beside []string // flavours of a configuration that it has
	in := tar.NewReader(files)
	for {
		h, err := in.Next()
		if err == io.EOF {
			err := fmt.Errorf("%s holds no file %s", filepath.Base(deb), strings.Join(names, ", "))
			if beside != nil {
				return host.Hint(err, "it has %s", strings.Join(beside, ", "))
			}
			return err
		} else if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		is := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeReg && slices.Contains(names, is) {
			break
		}
		if m := configFile.FindStringSubmatch(is); m != nil && filepath.Dir(is) == filepath.Dir(names[0]) && len(beside) < 32 {
			beside = append(beside, m[1])
		}
	}
	part := to + ".part"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", deb, err), os.Remove(part))
	}
	return os.Rename(part, to)
}
