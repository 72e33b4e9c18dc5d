package autopsy

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Why some code is damage.
const (
	Astray    = "astray"    // a branch that was rewritten, and leads to no code of its own
	Foreign   = "foreign"   // an instruction that was rewritten as nowhere else
	Unlisted  = "unlisted"  // bytes that no table of the kernel lists, and that the twin has as they are on disk
	Unpatched = "unpatched" // a place that stayed as it is on disk, and that nearly all like it did not
)

// Damage is code of one function that is in memory as it should not be.
type Damage struct {
	Function string `json:"function" yaml:"function"`
	Offset   uint64 `json:"offset" yaml:"offset"` // in it, bytes
	Address  uint64 `json:"address" yaml:"-"`
	Why      string `json:"why" yaml:"why"`
	Disk     Code   `json:"disk" yaml:"disk"`
	Memory   Code   `json:"memory" yaml:"memory"`
	// Twin is the same place of the guest that passes; nil where it has none.
	Twin *Code `json:"twin,omitempty" yaml:"twin,omitempty"`
	// Sites are those of the tables that have changed bytes of it.
	Sites []Site `json:"sites" yaml:"sites,omitempty"`
	// Meet are two of them, of different tables, that have a byte in common.
	Meet []Site `json:"meet,omitempty" yaml:"meet,omitempty"`
	// Leads is where the broken branch leads, "sched_balance_rq+0x14f5"; empty for
	// what is no branch.
	Leads string `json:"leads,omitempty" yaml:"leads,omitempty"`
	to    uint64
	// Ran tells whether it has run as it is in memory, TwinRan whether the same place
	// has in the twin; nil where that is not known.
	Ran     *bool `json:"ran,omitempty" yaml:"ran,omitempty"`
	TwinRan *bool `json:"twin-ran,omitempty" yaml:"twin-ran,omitempty"`
	// Order counts what was run before it for the first time; of what has not run, 0.
	Order int `json:"-" yaml:"-"`
	// Crashed tells that the kernel trapped where the broken branch leads.
	Crashed bool `json:"crashed,omitempty" yaml:"crashed,omitempty"`
	// Named tells that the console of the crash names the place itself.
	Named bool `json:"named,omitempty" yaml:"named,omitempty"`

	starts []uint64 // addresses of its instructions
	twin   uint64   // the address of the same place in the twin; 0 for none
	key    string   // of the function
}

// Code is some bytes of machine code.
type Code struct {
	Bytes string `json:"bytes" yaml:"bytes"` // hex
	Asm   string `json:"asm" yaml:"asm"`     // in the syntax of GNU as
}

// String says in a sentence what it is: "f+0x39 is astray, and has run: it leads to
// g-0x260, where the kernel trapped; two tables meet there: return and
// seal-hash of h".
func (d Damage) String() string {
	text := fmt.Sprintf("%s+%#x is %s", d.Function, d.Offset, d.Why)
	switch {
	case d.Executed():
		text += ", and has run"
	case d.Ran != nil:
		text += ", and has not run"
	}
	var more []string
	if d.Leads != "" {
		leads := "it leads to " + d.Leads
		if d.Crashed {
			leads += ", where the kernel trapped"
		}
		more = append(more, leads)
	}
	if d.Named {
		more = append(more, "the console names it")
	}
	if len(d.Meet) == 2 {
		more = append(more, fmt.Sprintf("two tables meet there: %s and %s", d.Meet[0], d.Meet[1]))
	}
	if more == nil {
		return text
	}
	return text + ": " + strings.Join(more, "; ")
}

// Executed tells whether it is known to have run.
func (d Damage) Executed() bool { return d.Ran != nil && *d.Ran }

// Thresholds of what is learnt. A kind of rewrite that a passing guest has a few times
// is the kernel's own, and one that the failing guest has so often is no damage of a
// single place.
const (
	oftenInTwin = 3
	oftenHere   = 32
	nearlyAll   = 30 // times as many are patched as are not
)

// Limits of what is reported: a memory of any bytes is not worth more.
const (
	maxDamage      = 256
	maxOfAFunction = 8
)

// learnt are the rewrites of a guest.
type learnt struct {
	kinds         map[string]int // by what they do, with the tables that list them
	patched, left map[string]int // places of each table that were changed, and that were not
}

// rewrite is one instruction in memory, and what it was on disk.
type rewrite struct {
	at            uint64
	was, is       instruction
	changed       bool
	unlisted      bool     // a changed byte of it is no table's
	stray         []uint64 // where those are in it
	sites         []Site
	does          string // what was before, and what is now
	kind          string // the same, with the tables that list it
	before, lands string // what was before, and where a branch lands now
}

// rewrites are the instructions of a function that were changed, or that a table
// lists.
func (r *Run) rewrites(f *Function, c code) (all []rewrite) {
	disk := r.OnDisk()
	var was code
	for _, at := range c.sorted() {
		in := c[at]
		n := max(1, len(in.code))
		if in.flow == bad { // as long as what was there
			n = max(1, len(r.machine.decode(disk.code(at, r.machine.longest), at).code))
		}
		old := disk.code(at, n)
		changed := !bytes.Equal(old, r.code(at, n))
		listed := r.listed(at, at+uint64(n))
		if !changed && listed == nil {
			continue
		}
		w := rewrite{at: at, is: in, changed: changed}
		w.was = r.machine.decode(disk.code(at, r.machine.longest), at)
		if was == nil && f.holds(w.was.to) { // where it lands in the function
			was = disk.walk(f)
		}
		var tables []string
		now := r.code(at, n)
		for k := range old {
			if old[k] == now[k] {
				continue
			}
			if !slices.ContainsFunc(listed, func(s Site) bool { return s.has(at + uint64(k)) }) {
				w.unlisted, w.stray = true, append(w.stray, uint64(k))
			}
		}
		for _, s := range listed {
			for k := range old {
				if s.has(at+uint64(k)) && (!changed || old[k] != now[k]) {
					w.sites = append(w.sites, s)
					if !slices.Contains(tables, s.Table) {
						tables = append(tables, s.Table)
					}
					break
				}
			}
		}
		slices.Sort(tables)
		w.before, _ = disk.shape(f, was, w.was)
		shape, lands := r.shape(f, c, in)
		w.lands = lands
		w.does = w.before + " -> " + shape
		if direct(w.was) && direct(in) && disk.place(f, w.was.to) != r.place(f, in.to) {
			w.does += " elsewhere"
		}
		w.kind = w.does + " | " + strings.Join(tables, " ")
		if w.unlisted {
			w.kind += " unlisted"
			if n := len(all) - 1; n >= 0 && all[n].changed && all[n].at+uint64(len(all[n].is.code)) == at {
				w.kind += " behind " + all[n].does // one patch has both
			}
		}
		all = append(all, w)
	}
	return all
}

// direct tells whether an instruction is a direct branch.
func direct(in instruction) bool { return in.flow == branch || in.flow == jump }

// owns is what it does with the table by which it is rewritten from its first byte on,
// whatever another has written behind that; empty where that is not one table.
func (w rewrite) owns() (own string) {
	for _, s := range w.sites {
		switch {
		case s.Address != w.at:
		case own != "":
			return ""
		default:
			own = w.does + " | from " + s.Table
		}
	}
	return own
}

func (s Site) has(address uint64) bool {
	return address >= s.Address && address-s.Address < uint64(s.Bytes)
}

// LearnFrom takes what another guest of the kernel has shown of its rewrites for this
// one's.
func (r *Run) LearnFrom(other *Run) { r.once.Do(func() { r.known = other.learn() }) }

// learn counts the rewrites of a guest, once.
func (r *Run) learn() learnt {
	r.once.Do(func() { r.known = r.count() })
	return r.known
}

func (r *Run) count() learnt {
	l := learnt{map[string]int{}, map[string]int{}, map[string]int{}}
	for _, f := range r.functions {
		if bytes.Equal(r.code(f.Address, int(f.Size)), r.text.data[f.Address-r.text.address:][:f.Size]) && r.listed(f.Address, f.Address+f.Size) == nil {
			continue
		}
		for _, w := range r.rewrites(f, r.walk(f)) {
			l.kinds[w.kind]++
			if own := w.owns(); own != "" && !w.unlisted {
				l.kinds[own]++
			}
			for _, s := range w.sites {
				if w.changed {
					l.patched[s.Table]++
				} else {
					l.left[s.Table]++
				}
			}
		}
	}
	return l
}

// Compare finds the damage of a guest's code, in the order of addresses. twin is
// another guest of the same kernel, in any layout, which has passed; with nil for none,
// only branches that lead astray are told. Where some damage is given, of any layout, only
// its functions are looked at.
func Compare(r, twin *Run, in ...*Damage) []*Damage {
	here, there := r.learn(), map[string]int{}
	if twin != nil {
		there = twin.learn().kinds
	}
	all := []*Damage{}
	for _, f := range r.functions {
		if len(all) >= maxDamage {
			break
		}
		if in != nil && !slices.ContainsFunc(in, func(d *Damage) bool { return d.key == f.key }) {
			continue
		}
		var t *Function
		if twin != nil {
			t = twin.index[f.key]
		}
		if t != nil && t.Size != f.Size {
			t = nil
		}
		disk := r.text.data[f.Address-r.text.address:][:f.Size]
		same := bytes.Equal(r.code(f.Address, int(f.Size)), disk)
		if same && (t == nil || bytes.Equal(twin.code(t.Address, int(t.Size)), twin.text.data[t.Address-twin.text.address:][:t.Size])) {
			continue
		}
		c := r.walk(f)
		var tc code
		if t != nil {
			tc = twin.walk(t)
		}
		var found []*Damage
		for _, w := range r.rewrites(f, c) {
			why := ""
			var y *instruction
			at := uint64(0)
			if t != nil {
				at = w.at - f.Address + t.Address
				if in, ok := tc[at]; ok {
					y = &in
				}
			}
			switch {
			case w.changed && r.odd(w):
				why = Foreign
			case w.changed && w.misled():
				why = Astray
			case y != nil && r.sameAs(f, w, twin, t, at, *y):
			case !w.changed:
				if y != nil && unpatched(w, here) && twin.changed(at, len(y.code)) && there[w.kind] < oftenInTwin {
					why = Unpatched
				}
			case r.expected(w):
			case there[w.kind] >= oftenInTwin, here.kinds[w.kind] >= oftenHere:
			case w.is.flow == jump && w.lands == entry && !w.unlisted && there[w.owns()] >= oftenInTwin:
				// Another table has written behind a jump that leads where such jumps do.
			case w.is.flow != bad && !w.unlisted && r.meaning(f, w.is) == r.meaning(f, w.was) && len(w.is.code) == len(w.was.code):
			case direct(w.is) && w.lands != inside && w.lands != entry && w.lands != before:
				why = Astray
			case twin == nil:
			case w.unlisted:
				why = Unlisted
			default:
				why = Foreign
			}
			if why == "" {
				continue
			}
			if n := len(found) - 1; n >= 0 && why != Unpatched && found[n].touches(w.at) {
				found[n].add(r, w, why)
				continue
			}
			if len(found) == maxOfAFunction {
				break
			}
			d := &Damage{Function: f.Name, key: f.key, Offset: w.at - f.Address, Address: w.at, twin: at}
			d.add(r, w, why)
			found = append(found, d)
		}
		for _, d := range found {
			r.complete(d, twin)
		}
		all = append(all, found...)
	}
	return all
}

// sameAs tells whether the twin has the same at the same place of the function.
func (r *Run) sameAs(f *Function, w rewrite, twin *Run, t *Function, at uint64, y instruction) bool {
	if r.meaning(f, w.is) != twin.meaning(t, y) || len(w.is.code) != len(y.code) {
		return false
	}
	if strings.Contains(r.place(f, w.is.to), between) && direct(w.is) {
		return false
	}
	if direct(w.is) && f.holds(w.is.to) && t.holds(y.to) && r.runs(w.is.to) != twin.runs(y.to) {
		return false
	}
	// Numbers are no part of the meaning: those that nobody lists are the disk's, or
	// they were changed in the twin as well; which bytes of a distance change is the layout's.
	if direct(w.is) || w.is.refs != 0 {
		return !w.unlisted || twin.changed(at, len(y.code))
	}
	return !slices.ContainsFunc(w.stray, func(k uint64) bool { return !twin.changed(at+k, 1) })
}

// runs is what the instruction at an address does.
func (r *Run) runs(at uint64) string {
	return r.machine.form(r.machine.decode(r.code(at, r.machine.longest), at))
}

func (r *Run) changed(at uint64, n int) bool {
	return !bytes.Equal(r.code(at, n), r.OnDisk().code(at, n))
}

// unpatched tells whether a place that is as it is on disk should not be: nearly all
// that its tables list are not.
func unpatched(w rewrite, l learnt) bool {
	return slices.ContainsFunc(w.sites, func(s Site) bool {
		return !s.pokable && s.Address == w.at && l.patched[s.Table] > nearlyAll*l.left[s.Table]
	})
}

// expected tells whether a place is one of those that are rewritten at any time, and
// as such a place can be: a guest that passes has been stopped at another time.
func (r *Run) expected(w rewrite) bool {
	for _, s := range w.sites {
		if s.Table == staticCalls && s.Address == w.at && w.was.flow == jump && r.machine.form(w.is) == "ret" {
			return true // of a call to nothing, where a plain return needs no thunk at its address
		}
		if !s.pokable || s.Address != w.at || len(w.is.code) != s.Bytes {
			continue
		}
		switch {
		case s.Table == jumpLabels && (w.is.idle || w.is.flow == jump && w.is.to == s.target):
			return true
		case s.Table != jumpLabels && (w.is.idle || w.is.flow != on && (w.lands == entry || w.lands == page)):
			return true
		}
	}
	return false
}

// hashes are what the hashes of kCFI on disk have become in memory. A kernel gives each
// another one, at each boot, for all that call and are called by it.
type hashes struct {
	calls    map[[2]uint32]int // on disk and in memory, and how often
	most     map[uint32]int    // of those of one on disk
	called   map[[2]uint32]bool
	callable map[uint32]bool // on disk; without those of sealed functions, which are 0 in memory
}

// values are what constants are at their places.
type values struct {
	all  map[[2]string]int // name and bytes, and how often
	most map[string]int    // of those of one name
}

// constants are all of them.
func (r *Run) constants() values {
	r.reading.Do(func() {
		v := values{map[[2]string]int{}, map[string]int{}}
		for _, s := range r.sites {
			if s.Table == constants {
				one := [2]string{s.For, string(r.code(s.Address, s.Bytes))}
				v.all[one]++
				v.most[s.For] = max(v.most[s.For], v.all[one])
			}
		}
		r.values = v
	})
	return r.values
}

// rehashed are all hashes.
func (r *Run) rehashed() hashes {
	r.rehashing.Do(func() {
		h := hashes{map[[2]uint32]int{}, map[uint32]int{}, map[[2]uint32]bool{}, map[uint32]bool{}}
		for _, s := range r.sites {
			was, is, ok := r.hash(s)
			pair := [2]uint32{was, is}
			switch {
			case !ok:
			case s.Table == cfiCallers:
				h.calls[pair]++
				h.most[was] = max(h.most[was], h.calls[pair])
			case is != 0:
				h.called[pair], h.callable[was] = true, true
			}
		}
		r.hashes = h
	})
	return r.hashes
}

// hash is the one at a site, on disk and in memory, without its sign.
func (r *Run) hash(s Site) (was, is uint32, ok bool) {
	if s.Table != cfiCallers && s.Table != cfiHashes {
		return 0, 0, false
	}
	was, wasOK := r.machine.number(r.OnDisk().code(s.Address, s.Bytes))
	is, isOK := r.machine.number(r.code(s.Address, s.Bytes))
	return min(was, -was), min(is, -is), wasOK && isOK
}

// odd tells whether a caller's hash, or a constant, has become another one than elsewhere.
func (r *Run) odd(w rewrite) bool {
	for _, s := range w.sites {
		if v := r.constants(); s.Table == constants && v.all[[2]string{s.For, string(r.code(s.Address, s.Bytes))}] < v.most[s.For] {
			return true
		}
		was, is, ok := r.hash(s)
		if !ok || s.Table != cfiCallers {
			continue
		}
		h, pair := r.rehashed(), [2]uint32{was, is}
		if n := h.calls[pair]; n < h.most[was] || n == 1 && h.callable[was] && !h.called[pair] {
			return true
		}
	}
	return false
}

// misled tells whether a static branch leads elsewhere than its table says.
func (w rewrite) misled() bool {
	return w.is.flow == jump && slices.ContainsFunc(w.sites, func(s Site) bool {
		return s.Table == jumpLabels && s.Address == w.at && s.target != w.is.to
	})
}

func (d *Damage) touches(at uint64) bool {
	last := d.starts[len(d.starts)-1]
	return d.Why != Unpatched && at <= last+16 && at <= d.Address+uint64(len(d.Memory.Bytes)/2)
}

// add makes an instruction a part of the damage.
func (d *Damage) add(r *Run, w rewrite, why string) {
	if d.Why == "" || why == Astray {
		d.Why = why
	}
	d.starts = append(d.starts, w.at)
	end := max(w.at+uint64(max(1, len(w.is.code))), d.Address+uint64(len(d.Memory.Bytes)/2))
	d.Memory.Bytes = hex.EncodeToString(r.code(d.Address, int(end-d.Address)))
	for _, s := range w.sites {
		if !slices.Contains(d.Sites, s) {
			d.Sites = append(d.Sites, s)
		}
	}
	if direct(w.is) && d.Leads == "" {
		d.Leads, d.to = r.Where(w.is.to), w.is.to
	}
}

// complete takes in how the place is on disk and in the twin, and which tables meet.
func (r *Run) complete(d *Damage, twin *Run) {
	disk := r.OnDisk()
	n := len(d.Memory.Bytes) / 2
	whole := 0 // instructions of the disk
	for _, in := range disk.list(d.Address, n) {
		whole += max(1, len(in.code))
	}
	n = max(n, whole)
	d.Disk, d.Memory = disk.show(d.Address, n), r.show(d.Address, n)
	if d.twin != 0 {
		code := twin.show(d.twin, n)
		d.Twin = &code
	}
	for i, a := range d.Sites {
		for _, b := range d.Sites[i+1:] {
			if d.Meet == nil && a.Table != b.Table && a.Address < b.Address+uint64(b.Bytes) && b.Address < a.Address+uint64(a.Bytes) {
				d.Meet = []Site{a, b}
			}
		}
	}
	if d.Meet == nil {
		// The bytes that one of the two has written may be those that were there.
		for _, a := range d.Sites {
			for _, b := range r.listed(a.Address, a.Address+uint64(a.Bytes)) {
				if d.Meet == nil && a.Table != b.Table && a.Table != alternatives && b.Table != alternatives {
					d.Meet = []Site{a, b}
				}
			}
		}
	}
	for _, s := range d.Meet {
		if !slices.Contains(d.Sites, s) {
			d.Sites = append(d.Sites, s)
		}
	}
}

// list decodes at least n bytes.
func (r *Run) list(at uint64, n int) (all []instruction) {
	for end := at + uint64(n); at < end; {
		in := r.machine.decode(r.code(at, r.machine.longest), at)
		all = append(all, in)
		at += uint64(max(1, len(in.code)))
	}
	return all
}

// maxShown bounds the bytes of a damage that are shown.
const maxShown = 64

// show is n bytes of code at an address, disassembled.
func (r *Run) show(at uint64, n int) Code {
	n = min(n, maxShown)
	c := Code{Bytes: hex.EncodeToString(r.code(at, n))}
	var asm []string
	for _, in := range r.list(at, n) {
		text := r.machine.text(in, at)
		at += uint64(max(1, len(in.code)))
		if direct(in) {
			text += " <" + r.Where(in.to) + ">"
		}
		asm = append(asm, text)
	}
	c.Asm = strings.Join(asm, "; ")
	return c
}
