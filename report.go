package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/google/renameio/v2"

	"unlucky/fuzz"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/seeds"
)

// What a page shows of each title, so that a sweep of 10,000 layouts stays
// readable, and below a few MB.
const (
	maxDetailed = 12      // titles with console and replay command
	maxRows     = 50      // further titles, a line each
	maxSeeds    = 24      // seeds of a title
	maxExcerpt  = 80      // lines of a console
	maxConsole  = 8 << 20 // bytes of it that are read; a boot keeps less
	maxBars     = 60
	maxCells    = 2048
	mapColumns  = 64
	maxNames    = 12 // of functions in a cell of the map
	maxSuspects = 10
	maxAlike    = 8 // functions of a suspect
	maxFaces    = 2 // titles of it
)

//go:embed templates/page.html
var reportHTML string

// pageBegin is how a page begins: the mark of a file that report may replace.
const pageBegin = `<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="generator" content="unlucky report">
`

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"comma":    func(n int) string { return humanize.Comma(int64(n)) },
	"plural":   func(n int, one string) string { return humanize.Comma(int64(n)) + " " + english.PluralWord(n, one, "") },
	"share":    share,
	"named":    qemu.Named,
	"short":    func(digest string) string { return fmt.Sprintf("%.12s", digest) },
	"ticks":    func(s string) []string { return strings.Split(s, "`") },
	"odd":      func(i int) bool { return i%2 == 1 },
	"list":     func(s []string) string { return strings.Join(s, ", ") },
	"name":     seeds.Layout.Name,
	"ofBoots":  ofBoots,
	"classes":  func() any { return classes },
	"levels":   func() any { return levels },
	"first":    func(s []string) []string { return s[:min(len(s), maxFaces)] },
	"rest":     func(s []string) int { return max(0, len(s)-maxFaces) },
	"brief":    func(f []fuzz.SuspectFunction) []fuzz.SuspectFunction { return f[:min(len(f), maxAlike)] },
	"more":     func(f []fuzz.SuspectFunction) int { return max(0, len(f)-maxAlike) },
	"suspects": func(s *fuzz.Suspicion) []fuzz.Suspect { return s.Best(maxSuspects) },
}).Parse(reportHTML))

// share rounds down: 100 % is all of them.
func share(n, of int) string {
	if of == 0 {
		return "-"
	}
	tenths := 1000 * n / of
	return fmt.Sprintf("%d.%d %%", tenths/10, tenths%10)
}

// reportPage is what the template is executed with.
type reportPage struct {
	Begin  template.HTML
	Made   time.Time
	Notes  []string // what could not be read
	Sweeps []*reportSweep
}

// reportSweep is the part of the page about some results. Of a kernel that has
// no coverage or map these are nil.
type reportSweep struct {
	*fuzz.Report
	ID          string
	Dirs        []string
	Saved       *seeds.File // one of the saved seeds: it tells of kernel and guest
	First, Last string      // seeds
	Begin, End  time.Time   // of the verdicts; zero where not known
	Booted      int         // layouts, the baseline too
	Unlucky     int         // of these
	Titles      int
	Found       []reportFinding // in full
	More        []reportFinding // a line each
	Left        int             // titles that are not listed
	Twins       []string
	Chart       chart
	Suspicion   *fuzz.Suspicion
	Map         *layoutMap
}

// reportFinding is a finding with what a reader can do with it.
type reportFinding struct {
	finding
	Seeds   []string
	Left    int      // seeds that are not listed
	Excerpt []string // of the console
	Crash   bool     // the excerpt is the report of a crash, else the console's end
	Replay  string   // commands
	Next    string
	Strips  []strip // of the culprits
	Answer  string  // all that minimize has told
}

// strip is a culprit's table as a picture.
type strip struct {
	seeds.Culprit
	Name  string // of the function whose residues these are
	Cells []stripCell
}

type stripCell struct {
	Residue uint64
	seeds.Boots
}

func report(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("report", flag.ContinueOnError)
	to := f.String("o", "report.html", "`file` to write; an earlier report is replaced, another file is not")
	dirs, err := parse(f, args, out, "report DIR... [flags]", 1, math.MaxInt)
	if err != nil {
		return err
	}
	if err := mayReplace(*to); err != nil {
		return err
	}
	scr := newScreen(os.Stderr)
	p := reportPage{Begin: pageBegin, Made: time.Now().UTC()}
	all, failed := fuzz.ReadResults(dirs, func(format string, a ...any) {
		scr.note(format, a...)
		p.Notes = append(p.Notes, fmt.Sprintf(format, a...))
	})
	if len(all) == 0 {
		return failed
	}
	titles, next := 0, ""
	for i, r := range all {
		s, err := newReportSweep(ctx, r, scr)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed = errors.Join(failed, err)
		s.ID = fmt.Sprintf("sweep-%d", i+1)
		p.Sweeps = append(p.Sweeps, s)
		titles += s.Titles
		for _, f := range s.Found {
			next = cmp.Or(next, f.Next)
		}
	}
	if failed != nil {
		p.Notes = append(p.Notes, strings.Split(failed.Error(), "\n")...)
	}
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, p); err != nil {
		return err
	}
	page := printable(b.String()) // marks that change the direction of writing would deceive here, too
	if err := renameio.WriteFile(*to, []byte(page), 0o644, renameio.WithTempDir(filepath.Dir(*to))); err != nil {
		return errors.Join(failed, err)
	}
	text := fmt.Sprintf("%s: %s, %s, %s\n\nnext, for example:\n  xdg-open %s\n", *to, english.Plural(len(p.Sweeps), "sweep", ""),
		english.Plural(titles, "title", ""), humanize.Bytes(uint64(len(page))), qemu.Quote([]string{*to}))
	if next != "" {
		text += "  " + next + "\n"
	}
	io.WriteString(out, printable(text))
	return failed
}

// mayReplace refuses to write over a file that is no report.
func mayReplace(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	begin := make([]byte, len(pageBegin))
	if _, err := io.ReadFull(f, begin); err != nil || string(begin) != pageBegin {
		return &linker.HintError{
			Err:  fmt.Errorf("%s is there, and is no report of unlucky: it is not written over", path),
			Hint: "give another -o, or remove the file",
		}
	}
	return nil
}

func newReportSweep(ctx context.Context, r *fuzz.Results, scr *screen) (*reportSweep, error) {
	s := &reportSweep{Report: r.Report(), Dirs: r.Dirs}
	tried := r.All()
	for _, t := range tried {
		if fuzz.Booted(t.Kind) {
			s.Booted++
		}
		if t.Found {
			s.Unlucky++
		}
		if t.Kind == qemu.Pass && t.Path != "" && len(s.Twins) < 3 {
			s.Twins = append(s.Twins, t.Path)
		}
		if t.Path != "" && s.Saved == nil {
			if f, err := seeds.Read(t.Path); err == nil && f.Digests.Object == r.Header.Object {
				s.Saved = &f
			}
		}
	}
	if len(r.Layouts) > 0 {
		s.First, s.Last = r.Layouts[0].Layout.String(), r.Layouts[len(r.Layouts)-1].Layout.String()
	}
	s.Chart = newChart(tried)
	s.Begin, s.End = s.Chart.begin, s.Chart.end

	found, failed := findings(r)
	s.Titles = len(found)
	var culprits []seeds.Culprit
	for i, f := range found {
		g := newReportFinding(f)
		for _, c := range g.Strips {
			culprits = append(culprits, c.Culprit)
		}
		switch {
		case i < maxDetailed:
			failed = errors.Join(failed, g.describe(r, s.Saved))
			s.Found = append(s.Found, g)
		case i < maxDetailed+maxRows:
			s.More = append(s.More, g)
		default:
			s.Left++
		}
	}
	var err error
	if s.Coverage, err = coverageOf(ctx, r, scr); err != nil {
		return s, errors.Join(failed, err)
	}
	if s.Coverage != nil {
		s.Suspicion, err = r.Suspects(ctx, scr.later("placing the functions"))
		scr.done()
		if err != nil {
			return s, errors.Join(failed, err)
		}
		s.Map, err = newMap(r.Layout, s.Suspicion.Scores, culprits)
	}
	return s, errors.Join(failed, err)
}

func newReportFinding(f finding) reportFinding {
	g := reportFinding{finding: f}
	for i, l := range f.Layouts {
		if i == maxSeeds {
			g.Left = len(f.Layouts) - i
			break
		}
		text := l.Layout.String()
		if l.Crashes < l.Boots {
			text += fmt.Sprintf(" (%d of %d boots)", l.Crashes, l.Boots)
		}
		g.Seeds = append(g.Seeds, text)
	}
	if f.Minimized == nil {
		return g
	}
	for _, c := range f.Minimized.Culprits {
		s := strip{Culprit: c}
		i := slices.IndexFunc(c.Functions, func(f seeds.Function) bool { return f.Moved })
		if c.Modulus > 0 && i >= 0 {
			s.Name = c.Functions[i].Name
			for _, r := range c.Residues {
				s.Cells = append(s.Cells, stripCell{(c.Functions[i].Address + r.Bytes) % c.Modulus, r.Boots})
			}
			slices.SortFunc(s.Cells, func(a, b stripCell) int { return cmp.Compare(a.Residue, b.Residue) })
		}
		g.Strips = append(g.Strips, s)
	}
	return g
}

// describe adds what is in files.
func (g *reportFinding) describe(r *fuzz.Results, saved *seeds.File) error {
	if g.File == "" {
		return nil // no seed of it was saved
	}
	trust := ""
	if saved != nil {
		trust = trustFlag(saved.Scenario)
	}
	command := func(name, path string) string { return "unlucky " + name + " " + qemu.Quote([]string{path}) + trust }
	g.Replay = command("replay", g.File)
	if g.Minimized == nil && g.Found {
		g.Next = command("minimize", g.File)
	}
	tried := r.All()
	i := slices.IndexFunc(tried, func(t fuzz.Tried) bool { return t.Path == g.File })
	console, err := readConsole(tried[i].Dir, g.File)
	if err != nil {
		return err
	}
	warnings := saved != nil && bool(saved.Scenario.Verdict.Warnings)
	if g.Excerpt = oops.Excerpt(console, warnings); g.Excerpt != nil {
		g.Crash = true
		g.Excerpt = g.Excerpt[:min(len(g.Excerpt), maxExcerpt)]
	} else if lines := oops.Lines(console); len(lines) > 0 {
		g.Excerpt = lines[max(0, len(lines)-maxExcerpt/4):]
	}
	if g.Minimized == nil {
		return nil
	}
	g.Replay = command("replay", seeds.MinimizedPath(g.File))
	f, err := seeds.Read(seeds.MinimizedPath(g.File))
	if err != nil {
		return err
	}
	g.Answer = answer(&f)
	return nil
}

// readConsole reads what was kept of the console of a saved seed; nil where that is
// missing. A folder may come by mail: nothing outside is read.
func readConsole(dir, path string) ([]byte, error) {
	name, err := filepath.Rel(dir, seeds.ConsolePath(path))
	if err != nil {
		return nil, err
	}
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%s is outside of %s, and is not read", seeds.ConsolePath(path), dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file, and is not read", seeds.ConsolePath(path))
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConsole))
}

// chart is a stacked bar chart of verdicts, by time, or by seeds where a
// verdict has no time.
type chart struct {
	Timed    bool
	Each     string // what a bar stands for: "10 minutes", "5 layouts"
	From, To string
	Max      int
	Width    int // bars
	Bars     []bar

	begin, end time.Time
}

type bar struct {
	X     int
	Title string
	Parts []part // from the bottom
}

type part struct {
	Class string
	Y, N  int // verdicts
}

// barSpans are what a bar may stand for, in seconds.
var barSpans = []int64{1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 24 * 3600}

// classOf is the class of a verdict, in the chart and its legend.
func classOf(t fuzz.Tried) string {
	switch {
	case t.Found:
		return "unlucky"
	case t.Kind == qemu.Pass:
		return "pass"
	case t.Kind == qemu.LinkFailed:
		return "nolink"
	case t.Kind == qemu.Duplicate:
		return "duplicate"
	}
	return "other"
}

var classes = []struct{ Class, Name string }{
	{"unlucky", "unlucky"}, {"other", "failed otherwise"}, {"nolink", "does not link"},
	{"duplicate", "the layout of another seed"}, {"pass", "passed"},
}

func newChart(tried []fuzz.Tried) (c chart) {
	if len(tried) == 0 {
		return c
	}
	byTime := func(a, b fuzz.Tried) int { return a.At.Compare(b.At) }
	c.Timed = !slices.ContainsFunc(tried, func(t fuzz.Tried) bool { return t.At.IsZero() })
	var index func(i int, t fuzz.Tried) int // of the bar
	var label func(x int) string
	if c.Timed {
		c.begin, c.end = slices.MinFunc(tried, byTime).At, slices.MaxFunc(tried, byTime).At
		first, last := c.begin.Unix(), c.end.Unix()
		const day = 24 * 3600
		span := ((last-first)/(maxBars-2)/day + 1) * day
		if i := slices.IndexFunc(barSpans, func(s int64) bool { return last/s-first/s < maxBars }); i >= 0 {
			span = barSpans[i]
		}
		c.Each = inWords(span)
		c.Width = int(last/span-first/span) + 1
		index = func(_ int, t fuzz.Tried) int { return int(t.At.Unix()/span - first/span) }
		label = func(x int) string {
			return time.Unix((first/span+int64(x))*span, 0).UTC().Format("2006-01-02 15:04:05") + " UTC"
		}
		c.From, c.To = label(0), label(c.Width)
	} else {
		each := (len(tried) + maxBars - 1) / maxBars
		c.Each = english.Plural(each, "layout", "")
		c.Width = (len(tried) + each - 1) / each
		index = func(i int, _ fuzz.Tried) int { return i / each }
		label = func(x int) string {
			a, b := tried[x*each], tried[min((x+1)*each, len(tried))-1]
			if a.Layout == b.Layout {
				return a.Layout.Name()
			}
			return a.Layout.Name() + " to " + b.Layout.String()
		}
		c.From, c.To = tried[0].Layout.Name(), tried[len(tried)-1].Layout.Name()
	}
	counts := make([]map[string]int, c.Width)
	for i, t := range tried {
		x := index(i, t)
		if counts[x] == nil {
			counts[x] = map[string]int{}
		}
		counts[x][classOf(t)]++
	}
	for x, count := range counts {
		b := bar{X: x}
		var words []string
		y := 0
		for _, k := range classes {
			if n := count[k.Class]; n > 0 {
				b.Parts = append(b.Parts, part{k.Class, y, n})
				words = append(words, fmt.Sprintf("%d %s", n, k.Name))
				y += n
			}
		}
		if y == 0 {
			continue
		}
		b.Title = label(x) + ": " + strings.Join(words, ", ")
		c.Max = max(c.Max, y)
		c.Bars = append(c.Bars, b)
	}
	return c
}

// inWords is a span of seconds.
func inWords(seconds int64) string {
	for _, unit := range []struct {
		seconds int64
		name    string
	}{{24 * 3600, "day"}, {3600, "hour"}, {60, "minute"}} {
		if seconds%unit.seconds == 0 {
			return english.Plural(int(seconds/unit.seconds), unit.name, "")
		}
	}
	return english.Plural(int(seconds), "second", "")
}

// layoutMap is a picture of the baseline from the first function that can move
// to the last, cut into cells of equally many bytes, from left to right and from
// top to bottom.
type layoutMap struct {
	Output        string
	Bytes         uint64 // of a cell
	Width, Height int    // cells
	Cells         []cell
	Rows          []mapRow // some, with their addresses
	Marks         []mark
}

type cell struct {
	X, Y  int
	Class string
	Title string
}

type mapRow struct {
	Y       int
	Address uint64
}

// High and Low are the halves of its address, of which a narrow page has room for
// the lower one.
func (r mapRow) High() string { return fmt.Sprintf("0x%08x", r.Address>>32) }
func (r mapRow) Low() string  { return fmt.Sprintf("%08x", uint32(r.Address)) }

// mark is a culprit on the map: the cells of its functions.
type mark struct {
	N       int
	Culprit string
	Cells   []point
}

type point struct{ X, Y int }

// levels are the steps of the map's colours, by the chance of luck that a cell
// has at most.
var levels = []struct {
	Chance float64
	Class  string
}{
	{1, "l0"}, {fuzz.Sure, "l1"}, {1e-3, "l2"}, {1e-6, "l3"}, {1e-12, "l4"}, {1e-24, "l5"},
}

// newMap colours each cell by the highest score, -log10 of a chance, of a
// section in it. There is a score for each section of the layout.
func newMap(layout []linker.Section, scores []float64, culprits []seeds.Culprit) (*layoutMap, error) {
	var movable []int
	for i := range layout {
		if linker.Movable(layout, i) {
			movable = append(movable, i)
		}
	}
	if movable == nil {
		return nil, nil
	}
	first, last := movable[0], movable[len(movable)-1]
	var text []int // sections
	var begin, end uint64
	for i, s := range layout[:last+1] {
		if i < first || s.Size == 0 {
			continue
		}
		if text == nil {
			begin = s.Address
		} else if s.Address < end {
			return nil, fmt.Errorf("the baseline's layout: %s at %#x is not behind the section before it", s.Name, s.Address)
		}
		if end = s.Address + s.Size; end <= s.Address {
			return nil, fmt.Errorf("the baseline's layout: %s ends behind the last address", s.Name)
		}
		text = append(text, i)
	}
	if text == nil {
		return nil, nil
	}
	m := &layoutMap{Output: layout[first].Output, Bytes: 16, Width: mapColumns}
	for (end-begin)/m.Bytes >= maxCells-1 {
		m.Bytes *= 2
	}
	begin &^= m.Bytes - 1
	in := make([][]int, (end-1-begin)/m.Bytes+1) // sections of each cell
	for _, i := range text {
		s := layout[i]
		for c := (s.Address - begin) / m.Bytes; c <= (s.Address+s.Size-1-begin)/m.Bytes; c++ {
			in[c] = append(in[c], i)
		}
	}
	m.Height = (len(in) + m.Width - 1) / m.Width
	step := max(1, m.Height/8)
	for y := 0; y < m.Height; y += step {
		m.Rows = append(m.Rows, mapRow{y, begin + uint64(y*m.Width)*m.Bytes})
	}
	for c, sections := range in {
		at := cell{X: c % m.Width, Y: c / m.Width, Class: "fixed"}
		address := begin + uint64(c)*m.Bytes
		title := []string{fmt.Sprintf("%#x to %#x", address, address+m.Bytes-1)}
		slices.SortStableFunc(sections, func(i, j int) int { return cmp.Compare(scores[j], scores[i]) })
		for n, i := range sections {
			s := layout[i]
			if linker.Movable(layout, i) && at.Class == "fixed" {
				at.Class = levelOf(scores[i])
			}
			if n == maxNames {
				title = append(title, fmt.Sprintf("... and %d more", len(sections)-n))
			}
			if n >= maxNames {
				continue
			}
			line := cmp.Or(s.Function, s.Name, "(no name)")
			if scores[i] > 0 {
				line += fmt.Sprintf(": by luck with a chance of %.1g", math.Pow(10, -scores[i]))
			}
			title = append(title, line)
		}
		at.Title = strings.Join(title, "\n")
		m.Cells = append(m.Cells, at)
	}
	for _, c := range culprits {
		sentence := c.String()
		if slices.ContainsFunc(m.Marks, func(k mark) bool { return k.Culprit == sentence }) {
			continue // of another title
		}
		k := mark{N: len(m.Marks) + 1, Culprit: sentence}
		for _, f := range c.Functions {
			i := slices.IndexFunc(text, func(i int) bool { return layout[i].Name == f.Section && f.Section != "" })
			if i < 0 {
				continue
			}
			at := int((layout[text[i]].Address - begin) / m.Bytes)
			if p := (point{at % m.Width, at / m.Width}); !slices.Contains(k.Cells, p) {
				k.Cells = append(k.Cells, p)
			}
		}
		m.Marks = append(m.Marks, k)
	}
	return m, nil
}

func levelOf(score float64) string {
	class := levels[0].Class
	for _, l := range levels {
		if score >= -math.Log10(l.Chance) {
			class = l.Class
		}
	}
	return class
}

// ViewWidth and ViewHeight are those of the picture, in cells: the addresses
// stand left of them.
func (m *layoutMap) ViewWidth() float64  { return float64(m.Width) + 10.4 }
func (m *layoutMap) ViewHeight() float64 { return float64(m.Height) + .4 }
