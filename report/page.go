package report

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"unlucky/fuzz/evidence"
	"unlucky/host"
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
	"name":     seeds.ID.Name,
	"ofBoots":  ofBoots,
	"classes":  func() any { return classes },
	"levels":   func() any { return levels },
	"first":    func(s []string) []string { return s[:min(len(s), maxFaces)] },
	"rest":     func(s []string) int { return max(0, len(s)-maxFaces) },
	"brief":    func(f []evidence.SuspectFunction) []evidence.SuspectFunction { return f[:min(len(f), maxAlike)] },
	"more":     func(f []evidence.SuspectFunction) int { return max(0, len(f)-maxAlike) },
	"suspects": func(s *evidence.Suspicion) []evidence.Suspect { return s.Best(maxSuspects) },
}).Parse(reportHTML))

// share rounds down: 100 % is all of them.
func share(n, of int) string {
	if of == 0 {
		return "-"
	}
	tenths := 1000 * n / of
	return fmt.Sprintf("%d.%d %%", tenths/10, tenths%10)
}

// Page is the page about some sweeps.
type Page struct {
	Begin   template.HTML
	Made    time.Time
	Version string   // of the program
	Notes   []string // what could not be read
	Sweeps  []*reportSweep
}

// reportSweep is the part of the page about some results. Of a kernel that has
// no coverage or map these are nil.
type reportSweep struct {
	*evidence.Report
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
	Suspicion   *evidence.Suspicion
	Map         *layoutMap
}

// reportFinding is a finding with what a reader can do with it.
type reportFinding struct {
	evidence.Summary
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

// MayReplace refuses to write over a file that is no report.
func MayReplace(path string) error {
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
		return &host.HintError{
			Err:  fmt.Errorf("%s is there, and is no report of unlucky: it is not written over", path),
			Hint: "give another -o, or remove the file",
		}
	}
	return nil
}

// Later begins a step that may take long, and returns what is told how far it is.
type Later func(step string) func(done, total int)

// NewPage reads what files there are about results, and finds what their verdicts
// say. The error tells what could not be read, and comes beside the page; nil is one
// that was interrupted.
func NewPage(ctx context.Context, all []*evidence.Results, later Later) (*Page, error) {
	p := &Page{Begin: pageBegin, Made: time.Now().UTC()}
	var failed error
	for i, r := range all {
		s, err := newReportSweep(ctx, r, later)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = errors.Join(failed, err)
		s.ID = fmt.Sprintf("sweep-%d", i+1)
		p.Sweeps = append(p.Sweeps, s)
	}
	return p, failed
}

// Titles is the number of titles found.
func (p *Page) Titles() (n int) {
	for _, s := range p.Sweeps {
		n += s.Titles
	}
	return n
}

// Next is the command to go on with; empty where none is at hand.
func (p *Page) Next() (command string) {
	for _, s := range p.Sweeps {
		for _, f := range s.Found {
			command = cmp.Or(command, f.Next)
		}
	}
	return command
}

// HTML is the whole page. Marks that change the direction of writing would deceive
// there, too.
func (p *Page) HTML() ([]byte, error) {
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, p); err != nil {
		return nil, err
	}
	return []byte(Printable(b.String())), nil
}

func newReportSweep(ctx context.Context, r *evidence.Results, later Later) (*reportSweep, error) {
	s := &reportSweep{Report: r.Report(), Dirs: r.Dirs}
	tried := r.All()
	for _, t := range tried {
		if evidence.Booted(t.Kind) {
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

	found, failed := evidence.Summaries(r)
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
	if s.Coverage, err = r.Covered(ctx, later("counting layouts")); err != nil {
		return s, errors.Join(failed, err)
	}
	if s.Coverage != nil {
		s.Suspicion, err = r.Suspects(ctx, later("placing the functions"))
		if err != nil {
			return s, errors.Join(failed, err)
		}
		s.Map, err = newMap(r.Layout, s.Suspicion.Scores, culprits)
	}
	return s, errors.Join(failed, err)
}

func newReportFinding(f evidence.Summary) reportFinding {
	g := reportFinding{Summary: f}
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

// InMemory says what an autopsy has told; empty for none.
func (g reportFinding) InMemory() string {
	text := memory(g.Autopsy)
	if g.Bug > 0 {
		text = fmt.Sprintf("Bug %d. %s", g.Bug, text)
	}
	return text
}

// describe adds what is in files.
func (g *reportFinding) describe(r *evidence.Results, saved *seeds.File) error {
	if g.File == "" {
		return nil // no seed of it was saved
	}
	trust := ""
	if saved != nil {
		trust = TrustFlag(saved.Scenario)
	}
	command := func(name, path string) string { return "unlucky " + name + " " + qemu.Quote([]string{path}) + trust }
	g.Replay = command("replay", g.File)
	if g.Minimized == nil && g.Found {
		g.Next = command("minimize", g.File)
	}
	tried := r.All()
	i := slices.IndexFunc(tried, func(t evidence.Tried) bool { return t.Path == g.File })
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
	g.Answer = Answer(&f)
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
