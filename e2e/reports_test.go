package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	_ "image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/seeds"
)

// browser is a page in a real Chromium.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu        sync.Mutex
	requested []string // URLs
	trouble   []string // what the console, the log and exceptions say, and what did not load
}

// needBrowser says that a test of the page is left out.
func needBrowser(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT TESTED with -short: the page in a browser")
	}
}

// browse opens a file from the disk.
func browse(t *testing.T, path string) *browser {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is not installed: make install-test")
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(5*time.Minute))...) // of a loaded machine
	t.Cleanup(cancel)
	b := &browser{t: t}
	b.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(b.event))
	t.Cleanup(cancel)
	file := url.URL{Scheme: "file", Path: path}
	get(b, call(network.Enable, network.EnableParams{}))
	get(b, call(log.Enable, cdp.Empty{}))
	get(b, chromedp.EmulateViewport(1200, 900))
	get(b, chromedp.Navigate(file.String()))
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if want := []string{file.String()}; !slices.Equal(b.requested, want) || b.trouble != nil {
			t.Errorf("%s: requested %q, want %q; trouble: %q", path, b.requested, want, b.trouble)
		}
	})
	return b
}

// event takes what the page does.
func (b *browser) event(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requested = append(b.requested, e.Request.URL)
	case *network.EventLoadingFailed:
		b.trouble = append(b.trouble, e.ErrorText)
	case *runtime.EventConsoleAPICalled:
		b.trouble = append(b.trouble, fmt.Sprint("console: ", e.Type))
	case *runtime.EventExceptionThrown:
		b.trouble = append(b.trouble, e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		b.trouble = append(b.trouble, e.Entry.Text)
	}
}

// get is the value of an action that must succeed.
func get[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// call is a command of the browser as an action.
func call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[R] {
	return func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, command, params) }
}

// media emulates a medium, "" or "print", and the user's wish for "light" or "dark".
func (b *browser) media(medium, scheme string) {
	b.t.Helper()
	get(b, call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: medium, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}))
}

// texts are those of all elements that a selector matches.
func (b *browser) texts(selector string) []string {
	b.t.Helper()
	return get(b, chromedp.Evaluate[[]string](fmt.Sprintf("[...document.querySelectorAll(%q)].map(e => e.textContent.trim().replace(/\\s+/g, ' '))", selector)))
}

// shows asks for an element with a text.
func (b *browser) shows(selector, text string) {
	b.t.Helper()
	all := b.texts(selector)
	if !slices.ContainsFunc(all, regexp.MustCompile(text).MatchString) {
		b.t.Errorf("no %s has %q; they have %.2000s", selector, text, strings.Join(all, " | "))
	}
}

// faint are the elements whose text has a contrast below 4.5 with what is behind
// it, the least of WCAG 2.2 (1.4.3, level AA).
const faint = `(() => {
	const rgb = colour => colour.match(/[\d.]+/g).map(Number)
	const luminance = colour => rgb(colour).slice(0, 3).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
		.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
	const behind = e => {
		for (; e; e = e.parentElement) {
			const colour = getComputedStyle(e).backgroundColor
			if (rgb(colour).length == 3) return colour
		}
		return 'rgb(255, 255, 255)'
	}
	return [...document.body.querySelectorAll('*')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
		.filter(e => !(e instanceof SVGElement)).filter(e => {
			const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))]
			return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5
		}).map(e => e.tagName + ': ' + e.textContent.trim())
})()`

// looks checks how the page looks: light and dark, wide and narrow, on paper.
func (b *browser) looks() {
	b.t.Helper()
	const backgrounds = "['body', '.tiles div', 'pre'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)"
	scheme := func(name string) []string {
		b.media("", name)
		b.notBlank(name)
		if faint := get(b, chromedp.Evaluate[[]string](faint)); len(faint) > 0 {
			b.t.Errorf("%s: too little contrast: %.500q", name, faint)
		}
		return get(b, chromedp.Evaluate[[]string](backgrounds))
	}
	light, dark := scheme("light"), scheme("dark")
	for i := range light {
		if light[i] == dark[i] {
			b.t.Errorf("light and dark have the same background, %s", dark[i])
		}
	}
	// On paper the page is light.
	b.media("print", "dark")
	if paper := get(b, chromedp.Evaluate[[]string](backgrounds)); !slices.Equal(paper, light) {
		b.t.Errorf("printed on %s, want %s", paper, light)
	}
	b.media("", "light")
	pdf := get(b, chromedp.PrintToPDF(chromedp.PDFPrintBackground()))
	if pages := regexp.MustCompile(`/Type ?/Page\b`).FindAll(pdf, -1); len(pages) == 0 || !bytes.HasPrefix(pdf, []byte("%PDF-")) {
		b.t.Errorf("printed to %d bytes without a page", len(pdf))
	}
	b.fits()
}

// fits checks that nothing is cut off, and nothing must be scrolled sideways, on a
// telephone and on screens.
func (b *browser) fits() {
	b.t.Helper()
	for _, width := range []int64{400, 800, 1400} {
		get(b, chromedp.EmulateViewport(width, 800))
		if seen := get(b, chromedp.Evaluate[int64]("document.scrollingElement.scrollWidth")); seen > width {
			b.t.Errorf("a window of %d px must be scrolled to see %d px", width, seen)
		}
		scrolled := "e.tagName != 'PRE'" // a wide console is
		if width == 400 {
			scrolled = "true"
		}
		if cut := get(b, chromedp.Evaluate[[]string](fmt.Sprintf(cut, scrolled))); len(cut) > 0 {
			b.t.Errorf("a window of %d px cuts %.500q", width, cut)
		}
		b.notBlank(fmt.Sprint(width))
	}
	get(b, chromedp.EmulateViewport(1200, 900))
}

// cut are the elements that reach out of the window or out of their picture, and
// those, where a condition is met, in which something is cut off or must be scrolled to.
const cut = `[...document.body.querySelectorAll('*')].filter(e => {
	const { left, right, width } = e.getBoundingClientRect()
	const window = e.ownerSVGElement ? e.ownerSVGElement.getBoundingClientRect() : { left: 0, right: innerWidth }
	return width > 0 && (left < window.left - 1 || right > window.right + 1) ||
		(%s) && !(e instanceof SVGElement) && getComputedStyle(e).display != 'inline' && e.scrollWidth > e.clientWidth + 1
}).map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 60))`

// notBlank takes a screenshot of the whole page, and keeps it where
// UNLUCKY_SCREENSHOTS names a folder.
func (b *browser) notBlank(name string) {
	b.t.Helper()
	shot := get(b, chromedp.FullScreenshot(100))
	picture, _, err := image.Decode(bytes.NewReader(shot))
	if err != nil {
		b.t.Fatal(err)
	}
	colours := map[any]int{}
	for y := picture.Bounds().Min.Y; y < picture.Bounds().Max.Y; y++ {
		for x := picture.Bounds().Min.X; x < picture.Bounds().Max.X; x++ {
			colours[picture.At(x, y)]++
		}
	}
	if len(colours) < 50 {
		b.t.Errorf("the screenshot has %d colours", len(colours))
	}
	if dir := os.Getenv("UNLUCKY_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%s.png", b.t.Name(), name)), shot, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

// The page about a real sweep whose scenario and console attack it.
func TestReport(t *testing.T) {
	needBrowser(t)
	l := newLane(t)
	const attack = `<script>document.body.id = "attacked"</script><img src="https://example.com/x.png" onerror="document.body.id = 'attacked'">`
	file := filepath.Join(l.dir, "tiny.yaml")
	scenario, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	scenario = regexp.MustCompile(`(?m)^description: .*`).ReplaceAll(scenario, []byte("description: '"+strings.ReplaceAll(attack, "'", "''")+"'"))
	if err := os.WriteFile(file, scenario, 0o644); err != nil {
		t.Fatal(err)
	}
	l.must("sweep", "tiny.yaml", "-seeds", "1:64", "-strategy", "cover", "-o", "out")
	found, _ := filepath.Glob(filepath.Join(l.dir, "out/tiny/invalid-opcode-in-canary_reboot/*.yaml"))
	if len(found) == 0 {
		t.Fatal("nothing was found")
	}
	l.must("minimize", found[0])
	for _, path := range found {
		console, err := os.ReadFile(seeds.ConsolePath(path))
		if err != nil {
			t.Fatal(err)
		}
		console = bytes.Replace(console, []byte("RIP: "), []byte(attack+"\u202e\x1b[2J\nRIP: "), 1)
		if err := os.WriteFile(seeds.ConsolePath(path), console, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := l.must("report", "out")
	t.Log(out)
	if !strings.HasPrefix(out, "report.html: 1 sweep, 1 title, ") || !strings.Contains(out, "\n  xdg-open report.html\n") {
		t.Errorf("report prints %q", out)
	}
	text, err := os.ReadFile(filepath.Join(l.dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return report.Printable(string(r)) != string(r) }); i >= 0 {
		t.Errorf("the page has %.20q", text[i:])
	}
	b := browse(t, filepath.Join(l.dir, "report.html"))
	b.shows("h2", `^tiny$`)
	b.shows(".tiles dd", `^65the baseline and seeds 1 to 64$`)
	b.shows(".facts td", "^"+regexp.QuoteMeta(attack)+"$")
	b.shows("article.found h4", `^invalid opcode in canary_reboot$`)
	b.shows("article.found", regexp.QuoteMeta(fmt.Sprintf("%d of 65 layouts", len(found))))
	b.shows("article.found pre", `^unlucky replay out/tiny/invalid-opcode-in-canary_reboot/[0-9]+\.min\.yaml$`)
	b.shows("article.found details[open] pre", `invalid opcode: 0000.* `+regexp.QuoteMeta(attack)+`.*RIP: [0-9]+:canary_reboot`)
	b.shows("article.found .culprit", "^It crashes when victim is at 0x20 mod 0x40; moved alone by [0-9]+ bytes it passes")
	b.shows(".strip .cells", `^0x0 0x10 0x20 0x30$`)
	b.shows(".coverage tr", `^mod 64[0-9,]+100\.0 %$`)
	b.shows("h3", "^Verdicts over time$")
	b.shows(".plot title", `^20[0-9-]{8} [0-9:]{8} UTC: .*[0-9]+ unlucky`)
	b.shows(".map title", `^0x[0-9a-f]+ to 0x[0-9a-f]+.* victim\b`)
	b.shows(".map figcaption li", "^crashes when victim is at")
	if n := get(b, chromedp.Evaluate[int]("document.querySelectorAll('script, img, link, iframe').length")); n > 0 {
		t.Errorf("the page has %d scripts, pictures or the like", n)
	}
	// The culprit's square is marked.
	at := "document.querySelector('.map .ring')"
	under := get(b, chromedp.Evaluate[string](fmt.Sprintf("[...document.querySelectorAll('.map rect:not(.ring)')].find(r => r.x.baseVal.value == %[1]s.x.baseVal.value && r.y.baseVal.value == %[1]s.y.baseVal.value).textContent", at)))
	if !strings.Contains(under, "\nvictim: by luck with a chance of ") {
		t.Errorf("the mark is on %q", under)
	}
	// It is a suspect, too, and its colour is another than that of the others.
	b.shows(".suspects tbody tr", `mod 0x40 16 of 16 ?0 of 49`)
	for _, scheme := range []string{"light", "dark"} {
		b.media("", scheme)
		fills := get(b, chromedp.Evaluate[map[string]int](`[...document.querySelectorAll('.map rect:not(.ring)')].map(e => getComputedStyle(e).fill).reduce((n, fill) => ({...n, [fill]: (n[fill] ?? 0) + 1}), {})`))
		if len(fills) < 2 {
			t.Errorf("%s: the squares are %v", scheme, fills)
		}
	}
	b.looks()

	// Of two sweeps there is an index, too.
	other := bytes.Replace(scenario, []byte("name: tiny\n"), []byte("name: other\n"), 1)
	if err := os.WriteFile(filepath.Join(l.dir, "other.yaml"), other, 0o644); err != nil {
		t.Fatal(err)
	}
	l.must("sweep", "other.yaml", "-seeds", "1:2", "-o", "out2")
	l.must("report", "out", "out2", "-o", "two.html")
	two := browse(t, filepath.Join(l.dir, "two.html"))
	two.shows(".index td", `^other$`)
	two.fits()

	// An earlier report is replaced; no other file is.
	l.must("report", "out/tiny")
	if err := os.WriteFile(filepath.Join(l.dir, "mine.html"), []byte("<!DOCTYPE html>\n<html lang=\"en\">\nmine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := l.run("report", "out", "-o", "mine.html"); exitStatus(err) != 1 || !strings.Contains(errs, "mine.html is there, and is no report of unlucky") {
		t.Errorf("exit status %d: %s", exitStatus(err), errs)
	}
}

// A folder that came by mail: 10,000 layouts with hundreds of titles, names that
// attack, and paths that lead elsewhere.
func TestReportOfMuch(t *testing.T) {
	needBrowser(t)
	dir := t.TempDir()
	const layouts, titles = 10_000, 300
	const attack = `</title><script>document.body.id = "attacked"</script>`
	secret := filepath.Join(dir, "secret.console")
	digest := strings.Repeat("0", 64)
	begin := time.Date(2026, 1, 2, 22, 0, 0, 0, time.UTC)
	// As [seeds.Journal] would write it, which syncs each line.
	journal := bytes.NewBufferString("unlucky-journal 1\n")
	line := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(journal, "%08x %s\n", crc32.ChecksumIEEE(text), text)
	}
	line(seeds.Header{Scenario: attack, Strategy: string(layout.Cover), Accel: "tcg", QEMU: "7.2", LLD: "22", Object: digest, Initrd: digest, Argv: digest, Rules: digest})
	for i := range layouts {
		r := seeds.Record{Layout: seeds.Seed(uint32(i)), Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}, Plan: fmt.Sprintf("%064x", i), At: begin.Add(time.Duration(i) * 3 * time.Second)}
		if n := i / 10; i%10 == 0 {
			r.Kind, r.Found, r.Crashes, r.Title = qemu.Crash, true, 1, fmt.Sprintf("%s in f%d", attack, max(0, n-100)%titles)
			r.Path = []string{"link.yaml", "../../secret.yaml", "none.yaml"}[n%titles%3]
		}
		line(r)
	}
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "out/big"), 0o755), os.WriteFile(filepath.Join(dir, "out/big", seeds.SweepJournal), journal.Bytes(), 0o644),
		os.WriteFile(secret, []byte("a secret\n"), 0o644), os.Symlink(secret, filepath.Join(dir, "out/big/link.console")))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "r.html")
	code, out := unlucky(t, "report", filepath.Join(dir, "out"), "-o", to)
	if code != 1 || !strings.Contains(out, "300 titles") { // the layout of the baseline is missing
		t.Errorf("exit status %d, printed %q", code, out)
	}
	text, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 1<<20 {
		t.Errorf("the page has %d bytes", len(text))
	}
	if strings.Contains(string(text), "a secret") {
		t.Error("the page has what is outside of the folder")
	}
	b := browse(t, to)
	b.shows("h2", "^"+regexp.QuoteMeta(attack)+"$")
	b.shows(".tiles dd", `^1,00010\.0 %$`)
	b.shows("article", `Seeds 0, 10, 20, .*, 230 \.\.\. and [0-9]+ more\.`)
	b.shows("p", `^\.\.\. and 238 more titles`)
	b.shows(".notes li", `is missing: an earlier unlucky made this sweep`)
	b.shows(".notes li", `/out/big/link\.console is no file, and is not read$`)
	b.shows(".notes li", `/secret\.console is outside of .*/out/big, and is not read$`)
	b.shows("p", `^There is no map: `)
	if bars := b.texts(".plot svg > g > g"); len(bars) > 60 {
		t.Errorf("%d bars", len(bars))
	}
	b.shows("figcaption", `^a bar is 10 minutes:`)
	b.shows(".x", `^2026-01-02 22:00:00 UTC ?2026-01-03 06:20:00 UTC$`)
	b.looks()
}

// A sweep of a real kernel: its thousands of functions on the map.
func TestReportOfCanary(t *testing.T) {
	needKernels(t)
	dir := t.TempDir()
	r := sweepJSON(t, "canary", "-seeds", "1:32", "-strategy", "cover", "-accel", "tcg", "-o", dir)
	to := filepath.Join(dir, "report.html")
	if code, _ := unlucky(t, "report", dir, "-o", to); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	b := browse(t, to)
	b.shows("article.found h4", `^invalid opcode in canary_reboot$`)
	b.shows("article.found", fmt.Sprintf("%d of 33 layouts", r.Finds()))
	b.shows("article.found details[open] pre", `RIP: 0010:canary_reboot`)
	b.shows(".map title", `\bcanary_victim\b`)
	if cells := b.texts(".map rect title"); len(cells) < 1000 {
		t.Errorf("%d squares on the map", len(cells))
	}
	b.looks()
}
