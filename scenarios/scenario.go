// Package scenarios is the scenario file: which kernel, which guest, and what
// counts as a pass or as the crash looked for. It reads and checks the YAML and
// holds the built-in scenarios with their patches. It does not know how a
// kernel is built, how a guest is booted, or what a layout is.
//
// A scenario file may take over another, the parent, by "from: boot" (a built-in one)
// or "from: ../base.yaml" (a file, as seen from the one that says so). What it gives
// itself is laid over that:
//   - A value takes the place of the parent's. Name and description are never taken
//     over.
//   - Of kernel.set, kernel.try, kernel.patches and guest.append, an item takes the
//     place of the parent's of the same name (symbol, file of the patch, parameter), or
//     is added behind them. A symbol in set is no longer in the parent's try, nor the
//     other way round. An empty list, and append: "", takes out all that the parent has.
//   - The other lists, guest.qemu-args and guest.ablate, take the place of the parent's.
//   - One of package, dir and build puts out the parent's, and build also its patches,
//     config, set and try; init puts out rootfs, and the other way round.
//
// The files that the parent names are looked for beside it. It need not be whole
// itself. Marshalled scenarios, as in seed files, hold all this resolved, and from is
// refused there: a file of a stranger reads no other.
package scenarios

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kballard/go-shellquote"
	"gopkg.in/yaml.v3"

	"unlucky/arch"
	"unlucky/yamltext"
)

// Scenario is one checked scenario with its defaults filled in. It is
// self-contained but for the kernel and the rootfs that it names: marshalled
// and parsed again it is the same, without the files that it was made from.
type Scenario struct {
	// Name is also the name of a folder: lower case, digits, dots and dashes.
	Name        string  `yaml:"name"`
	Description string  `yaml:"description,omitempty"`
	Kernel      Kernel  `yaml:"kernel"`
	Guest       Guest   `yaml:"guest"`
	Verdict     Verdict `yaml:"verdict"`
}

// Kernel says where the kernel comes from: exactly one of Package, Dir and
// Build is set.
type Kernel struct {
	// Package is a Debian source package, "linux-source-6.12", with "=VERSION"
	// behind it where that is meant; "linux-source" is the newest there is.
	Package string  `yaml:"package,omitempty"`
	Dir     string  `yaml:"dir,omitempty"`   // a kernel tree, absolute
	Build   string  `yaml:"build,omitempty"` // a finished build folder, absolute; no patches, config or set then
	Patches []Patch `yaml:"patches,omitempty"`
	Arch    string  `yaml:"arch"`
	// Compiler is "gcc" or a version of it, "gcc-12"; clang where it is empty.
	Compiler string `yaml:"compiler,omitempty" json:",omitempty"`
	// Config is a make target ("tinyconfig"), one of Debian's packages of
	// configurations with the flavour ("linux-config-6.12/amd64_none_amd64"), or,
	// with newlines in it, the text of a .config.
	Config string `yaml:"config,omitempty"`
	// Set are symbols on top of it, NAME=VALUE without CONFIG_; n is off.
	Set []string `yaml:"set,omitempty"`
	// Try are symbols like those of Set that not every kernel has: set where
	// kconfig takes them.
	Try []string `yaml:"try,omitempty" json:",omitempty"`
	// LinkWithout are options that the kernel's own makefiles give the linker, and that
	// its links are done without.
	LinkWithout []string `yaml:"link-without,omitempty" json:",omitempty"`
	// Sections says which input sections move in its layouts: Data, Blocks, or those of
	// functions where it is empty.
	Sections string `yaml:"sections,omitempty" json:",omitempty"`
	Image    string `yaml:"image"` // one of the architecture's
}

// Patch is a patch for the kernel's source, as `patch -p1` takes it.
type Patch struct {
	File   string `yaml:"file"` // a name, for messages: the patch is Text
	Want   string `yaml:"want"` // Applied, Absent or IfFits
	Tested string `yaml:"tested,omitempty"`
	Text   string `yaml:"text"`
}

// Which input sections move.
const (
	Text = "text" // of functions; a Kernel has the empty string for it
	Data = "data" // of objects in .data, .bss and .rodata
	// Blocks are functions, and what the linker script places by hand among them, as a whole.
	Blocks = "blocks"
)

// Moving is what the input sections hold that move, for messages: functions or objects.
func Moving(sections string) string {
	if sections == Data {
		return "objects"
	}
	return "functions"
}

// What is wanted of a patch.
const (
	Applied = "applied"
	Absent  = "absent"
	IfFits  = "if-fits" // applied to a source that it fits; any other stays as it is
)

// Guest is the machine: QEMU's, or what Command boots. One of Init and Rootfs is set,
// or, with a Command that has a user space of its own, neither.
type Guest struct {
	// Command is a program with its arguments that boots an image in QEMU's place, as
	// a shell would split them: see docs/boards.md. What is QEMU's alone is zero then.
	Command string `yaml:"command,omitempty"`
	// Slots is how many images Command boots at the same time.
	Slots int `yaml:"slots,omitempty"`
	// Infra matches what Command prints when the machine has failed, not the kernel.
	Infra Regexp `yaml:"infra,omitempty"`

	Init     string   `yaml:"init,omitempty"`   // the shell script that busybox runs as /init
	Rootfs   string   `yaml:"rootfs,omitempty"` // a cpio, plain, gzip or zstd: an absolute path
	Memory   Size     `yaml:"memory,omitempty"`
	CPUs     int      `yaml:"cpus,omitempty"`
	Machine  string   `yaml:"machine,omitempty"` // of QEMU, with its options: "microvm,acpi=off"
	CPU      string   `yaml:"cpu,omitempty"`     // of QEMU, with its flags: "Nehalem,-vme"
	Accel    string   `yaml:"accel"`             // "auto", "kvm" or "tcg"; "command" with Command
	Append   string   `yaml:"append,omitempty"`
	QEMUArgs []string `yaml:"qemu-args,omitempty"`
	// Ablate are switches of the kernel command line that minimize tries
	// one at a time, besides the ones that it tries everywhere.
	Ablate []string `yaml:"ablate,omitempty"`
	Limit  Duration `yaml:"limit"` // wall-clock limit of a boot
}

// Program is the command as words, nil where QEMU boots.
func (g Guest) Program() []string {
	if g.Command == "" {
		return nil
	}
	words, _ := shellquote.Split(g.Command) // as it was checked
	return words
}

// Verdict says what a boot shows.
type Verdict struct {
	// Pass matches a line that every good boot prints. Never empty.
	Pass Regexp `yaml:"pass"`
	// Crash matches the title or the console of the crash looked for; empty,
	// whatever is no pass is looked for.
	Crash    Regexp `yaml:"crash,omitempty"`
	Warnings bool   `yaml:"warnings,omitempty"` // whether a WARNING is a crash
	Confirm  int    `yaml:"confirm"`            // boots that confirm a find
}

func defaults(a *arch.Arch) Scenario {
	return Scenario{
		Kernel:  Kernel{Arch: a.Name, Image: a.Images[0]},
		Guest:   Guest{Memory: 512 << 20, CPUs: 1, Machine: a.Machine, CPU: a.CPU, Accel: "auto", Limit: Duration(minute)},
		Verdict: Verdict{Confirm: 2},
	}
}

//go:embed builtin
var builtin embed.FS

// names are the built-in scenarios in the order in which they are listed.
var names = []string{"kcfi-seal", "kcfi-hash", "canary", "boot", "page-cross", "pair", "early", "canary-flaky", "overrun", "cfi-shutdown", "canary-arm64", "boot-arm64", "page-cross-arm64", "pair-arm64", "early-arm64", "canary-flaky-arm64", "gki"}

// Load reads a built-in scenario, by its name, or a scenario file.
func Load(nameOrPath string) (Scenario, error) {
	data, src, err := open(nameOrPath)
	if err != nil {
		return Scenario{}, err
	}
	return parse(data, src)
}

func open(nameOrPath string) ([]byte, *source, error) {
	if slices.Contains(names, nameOrPath) {
		return openBuiltin(nameOrPath)
	}
	data, err := readFile(nameOrPath)
	if errors.Is(err, fs.ErrNotExist) && !isPath(nameOrPath) {
		return nil, nil, &UnknownError{nameOrPath}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the scenario: %w", err)
	}
	return data, &source{file: nameOrPath}, nil
}

func openBuiltin(name string) ([]byte, *source, error) {
	data, err := builtin.ReadFile("builtin/" + name + ".yaml")
	return data, &source{file: name + ".yaml", builtin: true}, err
}

// isPath tells a name that can only be a file's from one that may be meant for a
// built-in scenario's.
func isPath(name string) bool {
	return strings.Contains(name, "/") || slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name))
}

// source is a file that a scenario, or a part of one, is read from.
type source struct {
	file    string // for messages; empty inside another document
	builtin bool   // it names only files that are built in as well
	whole   bool   // it names no file; no folder or rootfs need exist here
	// The file that takes this one over, and in which line.
	heir     *source
	heirLine int
}

// beside is the path of a file that is named in this one.
func (s *source) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(s.file), name)
}

// read reads a file that is named in this one.
func (s *source) read(name string) ([]byte, error) {
	if s.builtin {
		return readBuiltin(name)
	}
	data, err := readRegular(s.beside(name))
	if errors.Is(err, fs.ErrNotExist) {
		return readBuiltin(name)
	}
	return data, err
}

// Parse reads a scenario file. The files that it names are looked for beside
// filename, and then among the built-in ones. An error names filename, the line
// and the key.
func Parse(data []byte, filename string) (Scenario, error) {
	return parse(data, &source{file: filename})
}

// ParseWhole reads what Marshal has written, wherever that was: no file is read,
// and the kernel and the rootfs that it names need not exist here.
func ParseWhole(data []byte, filename string) (Scenario, error) {
	return parse(data, &source{file: filename, whole: true})
}

// maxFile bounds a scenario file and each that it names, in bytes: the .config of
// a distribution's kernel has a fiftieth of it, and a rootfs is not read.
const maxFile = 16 << 20

// maxItems bounds the lines and commas of a scenario file: each item in YAML
// takes one of them, and up to 1 KB of memory.
const maxItems = 1 << 20

// readFile reads a file that may be anything.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is longer than %d MiB: is it the file that you mean", path, maxFile>>20)
	}
	return data, err
}

// readRegular reads a file that another names: a device or a pipe may never end.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	}
	return readFile(path)
}

// readBuiltin reads a built-in patch or config.
func readBuiltin(name string) ([]byte, error) {
	if strings.Contains(name, "/") || path.Ext(name) == ".yaml" {
		return nil, fs.ErrNotExist
	}
	return builtin.ReadFile("builtin/" + name)
}

// Builtin are the built-in scenarios, the default first.
func Builtin() []Scenario {
	var all []Scenario
	for _, name := range names {
		s, err := Load(name)
		if err != nil {
			panic(err) // embedded, and loaded by a test
		}
		all = append(all, s)
	}
	return all
}

// Names are those of the built-in scenarios, the default first.
func Names() []string { return slices.Clone(names) }

// UnknownError is a name that no built-in scenario has.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("no scenario %q: built in are %s; or give a YAML file", e.Name, strings.Join(names, ", "))
}

// Marshal writes the scenario as a file that Parse reads.
func (s Scenario) Marshal() ([]byte, error) { return yamltext.Marshal(s) }

// MarshalYAML writes the scenario so that its texts come back byte by byte, inside
// another document, too.
func (s Scenario) MarshalYAML() (any, error) {
	type plain Scenario
	return yamltext.Node(plain(s))
}

// UnmarshalYAML reads a scenario inside another document, such as a saved seed.
// It must be self-contained: no file is read, and a rootfs need not exist.
func (s *Scenario) UnmarshalYAML(n *yaml.Node) error {
	d := newDecoder(&source{whole: true})
	got, err := d.scenario(n)
	if err == nil {
		*s = got
	}
	return err
}
