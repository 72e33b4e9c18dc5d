package report

import (
	"embed"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"unlucky/arch"
	"unlucky/fuzz"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/scenarios"
	"unlucky/seeds"
)

var (
	//go:embed templates/report.txt templates/run.sh
	templates embed.FS
	texts     = template.Must(template.New("").Funcs(template.FuncMap{
		"para": func(text string) string { return Wrap("", "", text) }, "tidy": tidy,
		"quote": func(word string) string { return qemu.Quote([]string{word}) },
	}).ParseFS(templates, "templates/*"))
)

// Letter is what the texts of a bundle are made of: nothing but the seed file,
// its console and its image, so that equal ones give equal texts.
type Letter struct {
	seeds.File
	Machine  qemu.Machine // as it was booted
	console  []string
	answer   *seeds.File // whose Minimized is about this layout; or nil
	Trace    string      // what the console says, decoded
	Reported bool        // of a crash report: else it is the console's end
}

// NewLetter reads what is in dir, and the lines of debug, an image with debug information;
// empty where that in dir has it, or there is none.
func NewLetter(dir, debug string, saved seeds.File, answer *seeds.File, console []byte) (*Letter, error) {
	g := fuzz.NewGuest(saved.Scenario, seeds.InitrdFile)
	g.Accelerate(saved.Accel, func(string, ...any) {})
	g.Machine.Kernel = saved.Scenario.Kernel.Image
	l := &Letter{File: saved, Machine: g.Machine, answer: answer, console: oops.Lines(console)}
	report := oops.Excerpt(console, saved.Scenario.Verdict.Warnings)
	if report == nil || saved.Kind == qemu.Pass {
		const last = 24 // a screen
		l.Trace = strings.Join(l.console[max(0, len(l.console)-last):], "\n") + "\n"
		if len(l.console) == 0 {
			l.Trace = "(it has printed nothing)\n"
		}
		return l, nil
	}
	d, err := newDecoder(dir, debug, saved.Scenario.Kernel, l.console)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l.Trace, l.Reported = d.decode(report), true
	return l, nil
}

// Text is the member of a bundle of that name.
func (l *Letter) Text(name string) (string, error) {
	var b strings.Builder
	err := texts.ExecuteTemplate(&b, name, l)
	return ascii(b.String()), err
}

func (l *Letter) Failed() bool     { return l.Kind != qemu.Pass }
func (l *Letter) Folder() string   { return seeds.BundleName(l.File) }
func (l *Letter) Seen() string     { return Seen(l.File) }
func (l *Letter) Trust() string    { return TrustFlag(l.Scenario) }
func (l *Letter) Need() string     { return qemu.NeedOf(l.Machine.Binary) }
func (l *Letter) PassLine() string { return l.Scenario.Verdict.Pass.String() }

// Run is the command line that boots in QEMU's place, for a shell; empty for QEMU.
func (l *Letter) Run() string {
	if l.Machine.Program == nil {
		return ""
	}
	return qemu.Quote(l.Machine.Argv())
}

// By is what boots the image, in a few words.
func (l *Letter) By() string {
	if l.Machine.Program == nil {
		return "QEMU alone (here " + l.Tools.QEMU + ")"
	}
	return l.Machine.Program[0] + ", which its run.sh calls"
}

// Options are QEMU's, for a shell: each with its value.
func (l *Letter) Options() (options []string) {
	m := l.Machine
	m.Accel = "tcg" // a place to put the variable
	for _, arg := range m.Argv()[1:] {
		word := qemu.Quote([]string{arg})
		last := len(options) - 1
		switch {
		case last >= 0 && options[last] == "-accel":
			word = `"$accel"`
		case last >= 0 && options[last] == "-cpu" && (arg == "host" || l.WithoutTCG() != ""):
			word = `"$cpu"`
		}
		if strings.HasPrefix(arg, "-") || last < 0 {
			options = append(options, word)
		} else {
			options[last] += " " + word
		}
	}
	return options
}

// WithoutTCG is the CPU model without what only TCG takes; empty where it has nothing
// of that.
func (l *Letter) WithoutTCG() string {
	plain, ok := strings.CutSuffix(l.Machine.CPU, ","+arch.TCGOnly)
	if !ok {
		return ""
	}
	return plain
}

var bannerRE = regexp.MustCompile(`^Linux version (\S+).*`)

// kernel is "Linux 6.12.117", by the console, and its whole banner.
func (l *Letter) kernel() (name, banner string) {
	for _, line := range l.console {
		if m := bannerRE.FindStringSubmatch(line); m != nil {
			return "Linux " + m[1], line
		}
	}
	return "The kernel", ""
}

func (l *Letter) Subject() string {
	name, _ := l.kernel()
	if !l.Failed() {
		return fmt.Sprintf("%s: a layout of the image that passes", name)
	}
	return fmt.Sprintf("[BUG] %s: depends on the layout of the image", strings.TrimPrefix(l.Title, "BUG: "))
}

// Does is what a kernel that fails does.
func (l *Letter) Does() string {
	switch {
	case l.Kind == qemu.Hang:
		return "hangs"
	case !l.Reported: // qemu.Boot's "unexpected exit"
		return "resets without a word"
	}
	return "crashes"
}

// Intro is the first paragraph.
func (l *Letter) Intro() string {
	text, _ := l.kernel()
	moving, where := scenarios.Moving(l.Scenario.Kernel.Sections), ".text"
	if l.Scenario.Kernel.Sections == scenarios.Data {
		where = ".data, .bss and .rodata"
	}
	if l.Failed() {
		text += fmt.Sprintf(" %s in %d of %d boots (%s), and whether it does depends on where the linker puts its %s.",
			l.Does(), l.Crashes, l.Boots, l.Title, moving)
	} else {
		text += fmt.Sprintf(" passes with this layout, in %d of %d boots. It is sent to be set beside one that fails.", l.Boots-l.Crashes, l.Boots)
	}
	switch {
	case l.Plan != nil:
		text += fmt.Sprintf(" The objects are the same in all images: this one differs from a plain link in %s, and in nothing else.", changes(*l.Plan, l.Scenario.Kernel.Sections))
	case l.Layout == seeds.Baseline:
		text += fmt.Sprintf(" This one is a plain link; others of the same objects, with padding between %s, differ in nothing else.", moving)
	default:
		text += fmt.Sprintf(" The objects are the same in all images: this one has other padding between the %s of %s than a plain link, and perhaps another order of them, and nothing else.", moving, where)
	}
	return text
}

// Sentences are further paragraphs, of what is known.
func (l *Letter) Sentences() (out []string) {
	if len(l.Titles) > 1 {
		var faces []string
		for _, title := range slices.Sorted(maps.Keys(l.Titles)) {
			faces = append(faces, fmt.Sprintf("%s (%d)", title, l.Titles[title]))
		}
		out = append(out, fmt.Sprintf("It has several faces, in boots: %s.", strings.Join(faces, ", ")))
	}
	if l.answer == nil {
		return out
	}
	for i, c := range l.answer.Minimized.Culprits {
		how := "It"
		if i > 0 {
			how = "Also, by itself, it"
		}
		out = append(out, fmt.Sprintf("%s %s.", how, c))
	}
	if text := memory(l.answer.Minimized.Autopsy); text != "" {
		out = append(out, text)
	}
	var cures []string
	for _, s := range l.answer.Minimized.Switches {
		if s.Verdict() == "passes" {
			cures = append(cures, s.Append)
		}
	}
	if cures != nil {
		out = append(out, fmt.Sprintf("The same image passes with %s on the kernel command line.", strings.Join(cures, ", or ")))
	}
	return out
}

// memory says in a sentence what an autopsy has told; empty for none.
func memory(a *seeds.Autopsy) string {
	switch {
	case a == nil:
		return ""
	case len(a.Damage) == 0:
		return "The code in the memory of the dead kernel is intact."
	}
	return fmt.Sprintf("In the memory of the dead kernel %s.", a.Damage[0])
}

// Answer is minimize's, whole; empty without one.
func (l *Letter) Answer() string {
	if l.answer == nil {
		return ""
	}
	return Answer(l.answer)
}

// See is what running the image shows.
func (l *Letter) See() string {
	pass := fmt.Sprintf("prints what matches %q", l.PassLine())
	switch {
	case !l.Failed():
		return "It passes, and " + pass + "."
	case l.Reported:
		return fmt.Sprintf("What is to be seen is %s; a boot that passes %s.", l.Seen(), pass)
	}
	return fmt.Sprintf("It %s, where the console above ends (^C ends it); a boot that passes %s.", l.Does(), pass)
}

// Facts are the lines of a table.
func (l *Letter) Facts() (lines []string) {
	_, banner := l.kernel()
	k, m := l.Scenario.Kernel, l.Machine
	fact := func(name, value string) {
		if value != "" {
			lines = append(lines, Wrap(fmt.Sprintf("  %-10s", name), strings.Repeat(" ", 12), value))
		}
	}
	fact("scenario", strings.TrimPrefix(l.Scenario.Name+": "+l.Scenario.Description, ": "))
	fact("kernel", banner)
	fact("source", source(k))
	fact("config", config(k))
	fact("append", m.Append)
	fact("toolchain", fmt.Sprintf("%s, lld %s", l.Tools.Compiler(), l.Tools.LLD))
	if command := l.Scenario.Guest.Command; command != "" {
		fact("machine", "booted by "+command)
	} else {
		fact("machine", fmt.Sprintf("QEMU %s, %s, -M %s -cpu %s -smp %d -m %dM", l.Tools.QEMU, l.Accel, m.Type, m.CPU, m.CPUs, m.MemoryMiB))
	}
	fact("objects", "vmlinux.o, sha256 "+l.Digests.Object)
	fact("image", "vmlinux, sha256 "+l.Digests.Image)
	fact("unlucky", l.Tools.Unlucky)
	fact("layout", fmt.Sprintf("%s, strategy %s, found %s", l.Layout.Name(), l.Strategy, l.At.Format("2006-01-02")))
	return lines
}

// source is where a kernel comes from, in words.
func source(k scenarios.Kernel) string {
	var text string
	switch {
	case k.Package != "":
		text = "Debian's " + strings.Replace(k.Package, "=", " ", 1)
	case k.Dir != "":
		text = "the tree " + filepath.Base(k.Dir)
	default:
		text = "the build " + filepath.Base(k.Build)
	}
	for _, p := range k.Patches {
		if p.Want == scenarios.Absent {
			text += ", without " + p.File
		} else {
			text += ", with " + p.File
		}
	}
	if len(k.Patches) > 0 {
		text += " (whole in seed.yaml)"
	}
	return text
}

// config is a kernel's configuration, in words.
func config(k scenarios.Kernel) string {
	text := k.Config
	if strings.Contains(text, "\n") {
		text = "the .config in seed.yaml"
	}
	if len(k.Set)+len(k.Try) > 0 {
		text += ", with " + strings.Join(append(slices.Clip(k.Set), k.Try...), " ")
	}
	return text
}

// width is that of lines in a mail.
const width = 72

// Wrap sets words in lines of width, the first behind first, the others behind
// next. A word that is longer has a line of its own.
func Wrap(first, next, text string) string {
	var b strings.Builder
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		if !empty && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line, empty = next, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	return b.String() + line
}

var item = regexp.MustCompile(`^ *[0-9]+\. `)

// tidy wraps the prose of a text, and leaves its tables, which are indented.
func tidy(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if len(line) > width && !strings.HasPrefix(line, "  ") {
			begin := item.FindString(line)
			lines[i] = Wrap(begin, strings.Repeat(" ", len(begin)), line[len(begin):])
		}
	}
	return strings.Join(lines, "\n")
}

// ascii is a text that every mail program and mailing list takes.
func ascii(text string) string {
	return strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, Printable(text))
}

// Seen is what the boots of a saved seed have shown, in words.
func Seen(f seeds.File) string {
	if f.Kind == qemu.Pass {
		return fmt.Sprintf("a layout that passes (%d of %d boots)", f.Boots-f.Crashes, f.Boots)
	}
	return fmt.Sprintf("%s (%d of %d boots)", f.Title, f.Crashes, f.Boots)
}
