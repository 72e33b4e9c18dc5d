package search

import (
	"context"
	"slices"
	"strings"
	"sync"

	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/seeds"
)

// memory is what the guests of a search have in memory of the kernel's code.
type memory struct {
	guest   *fuzz.Guest
	layout  []layout.Section // the baseline's
	failing string           // the digest of the failing plan

	mu   sync.Mutex
	err  error      // why it cannot be had
	dead *fuzz.Body // of the failing layout
	twin *fuzz.Body // of one that passes
	// damage is the failing layout's, the likeliest culprit first, and seen that of all
	// layouts that were looked into, by the digests of their plans.
	damage  []damage
	seen    map[string][]damage
	watched []*autopsy.Damage // whose functions are
}

// damage is some with the sections that it is about: of the function that it is in,
// and of those that the tables mean which list it.
type damage struct {
	*autopsy.Damage
	sections []string
}

// looks tells whether a boot is to be looked into: until it is known whether there is
// damage each is, and then those that an answer of care rests on.
func (m *memory) looks(sure bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err == nil && (m.dead == nil || m.twin == nil || sure && m.damage != nil)
}

// boot boots the image of a plan and looks into its memory.
func (m *memory) boot(ctx context.Context, image linker.Image, p layout.Plan) (qemu.Result, error) {
	m.mu.Lock()
	watched, twin, dead := m.watched, m.twin, m.dead
	m.mu.Unlock()
	b, err := m.guest.Look(ctx, image.Path, image.VMLinux, watched)
	if err != nil {
		return qemu.Result{}, err
	}
	digest := p.Digest()
	var found []damage
	if b.Err == nil && watched != nil {
		if found, err = m.about(b.Still(twin, dead), p); err != nil {
			return b.Result, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case b.Err != nil:
		m.err = b.Err
	case found != nil:
		m.seen[digest] = found
	case digest != m.failing && b.Kind == qemu.Pass && m.twin == nil:
		m.twin = b
	case digest == m.failing && b.Kind != qemu.Pass:
		m.dead = b
	}
	return b.Result, nil
}

// about finds the sections that some damage in the layout of a plan is about.
func (m *memory) about(all []*autopsy.Damage, p layout.Plan) ([]damage, error) {
	found := []damage{}
	at, err := layout.Place(m.layout, p)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		named := damage{Damage: d}
		take := func(address uint64) {
			for i, s := range m.layout {
				if address > 0 && at[i] <= address && address-at[i] < s.Size && !slices.Contains(named.sections, s.Name) {
					named.sections = append(named.sections, s.Name)
				}
			}
		}
		take(d.Address)
		for _, s := range d.Sites {
			take(s.At)
		}
		found = append(found, named)
	}
	return found, nil
}

// intact tells whether a plan that passes was looked into, and of the code that the
// failing layout damages nothing was damaged there that has run.
func (m *memory) intact(p layout.Plan) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, ok := m.seen[p.Digest()]
	return ok && !slices.ContainsFunc(found, func(d damage) bool { return d.Executed() })
}

// openMemory makes boots be looked into, where that can be had.
func (m *Minimize) openMemory(ctx context.Context) error {
	if !m.Autopsy {
		return nil
	}
	if err := m.Guest.Watches(); err != nil {
		m.Note("no autopsy: %v", err)
		return nil
	}
	sections, err := m.Kernel.Layout(ctx)
	m.judge.memory = &memory{guest: m.Guest, layout: sections, failing: m.fail.Digest(), seen: map[string][]damage{}}
	return err
}

// examine holds the memory of the failing layout against that of one that passes, and
// watches which of the damage runs.
func (m *Minimize) examine(ctx context.Context) error {
	memory := m.judge.memory
	if memory == nil {
		return nil
	}
	m.asking(0, "what is damaged in its memory")
	if memory.dead == nil && memory.err == nil {
		if err := m.judge.look(ctx, m.fail, 0); err != nil {
			return err
		}
	}
	if memory.twin == nil && memory.err == nil {
		none := m.hybrids.Plan(layout.Choice{On: make([]bool, m.hybrids.Len())}, nil, 0)
		if err := m.judge.look(ctx, none, 0); err != nil {
			return err
		}
	}
	leave := func(format string, a ...any) error {
		m.judge.memory = nil
		m.Note(format, a...)
		known := m.judge.known(m.fail, "").Boots
		if err := m.judge.boot(ctx, m.fail, "", max(ends, m.Boots)-known, false); err != nil {
			return err
		}
		return m.steady(ctx)
	}
	if memory.err != nil {
		return leave("no autopsy: %v", memory.err)
	}
	if memory.dead == nil || memory.twin == nil {
		return leave("no autopsy: the failing layout passes now, or the passing one fails")
	}
	found, err := memory.about(memory.dead.Damage(memory.twin), m.fail)
	if err != nil {
		return err
	}
	m.result.Autopsy = &seeds.Autopsy{Twin: m.result.Passing}
	if len(found) == 0 {
		return leave("the code in its memory is intact: data, timing, or a CPU's doing")
	}
	memory.damage = found
	for _, d := range found {
		memory.watched = append(memory.watched, d.Damage)
	}
	if err := m.judge.look(ctx, m.fail, max(ends, m.Boots)); err != nil {
		return err
	}
	if again := memory.seen[m.fail.Digest()]; len(again) > 0 {
		memory.damage = again
	}
	memory.watched = nil
	for _, d := range memory.damage {
		memory.watched = append(memory.watched, d.Damage)
	}
	m.result.Autopsy = seeds.NewAutopsy(m.result.Passing, memory.watched)
	m.Note("%s", memory.damage[0])
	if err := m.steady(ctx); err != nil {
		return err
	}
	return m.name(ctx)
}

// name asks whether the damage that has run first fails by itself.
func (m *Minimize) name(ctx context.Context) error {
	h := m.hybrids
	d := m.judge.memory.damage[0]
	set := m.functions(d)
	if set == nil || !d.Executed() && !d.Crashed {
		return nil
	}
	var names []string
	for _, f := range set {
		names = append(names, h.Section(f).FunctionName())
	}
	text := strings.Join(names, ", ")
	m.asking(len(set), "does it fail by %s alone", text)
	answers, err := m.judge.ask(ctx, false, m.choice(h, m.only(Culprit{Functions: set}), nil))
	if err == nil && answers[0] == Fails {
		m.named = true
		m.judge.mu.Lock()
		boots := m.judge.boots
		m.judge.mu.Unlock()
		m.Note("it fails by %s alone, as %d boots have told", text, boots)
	}
	return err
}

// damaged are the sets of functions that memory suspects in what is left of the failing
// layout: of each damage that has run, and of all others together.
func (m *Minimize) damaged(within layout.Choice) (sets [][]int) {
	memory := m.judge.memory
	found := memory.damage
	for v := range variants {
		if seen, ok := memory.seen[m.hybrids.Plan(within, nil, v).Digest()]; ok {
			found = seen
		}
	}
	var latent []int
	for _, d := range found {
		switch set := m.functions(d); {
		case !d.Executed() && !d.Crashed:
			latent = append(latent, set...)
		case set != nil && len(sets) < maxFirst:
			sets = append(sets, set)
		}
	}
	latent = slices.DeleteFunc(latent, func(f int) bool { return !within.On[f] })
	if latent != nil {
		slices.Sort(latent)
		sets = append(sets, slices.Compact(latent))
	}
	return sets
}

// functions are those that some damage is about, with their neighbours where it is about
// one alone; nil where none of them can be moved.
func (m *Minimize) functions(d damage) (set []int) {
	h := m.hybrids
	for f := range h.Len() {
		if slices.Contains(d.sections, h.Section(f).Name) {
			set = append(set, f)
		}
	}
	if len(set) == 1 {
		set = slices.Compact([]int{max(set[0]-1, 0), set[0], min(set[0]+1, h.Len()-1)})
	}
	return set
}

// caused tells whether some damage is about all functions of a culprit.
func (m *Minimize) caused(c Culprit) bool {
	if m.judge.memory == nil {
		return false
	}
	for _, found := range m.judge.memory.seen {
		for _, d := range found {
			set := m.functions(d)
			if !slices.ContainsFunc(c.Functions, func(f int) bool { return !slices.Contains(set, f) }) {
				return true
			}
		}
	}
	return false
}

// accuse notes which damage is of which culprit.
func (m *Minimize) accuse() {
	if m.judge.memory == nil {
		return
	}
	for i, d := range m.judge.memory.damage {
		for n, c := range m.result.Culprits {
			of := func(f seeds.Function) bool { return len(d.sections) > 0 && f.Section == d.sections[0] }
			if slices.ContainsFunc(c.Functions, of) && m.result.Autopsy.Damage[i].Culprit == 0 {
				m.result.Autopsy.Damage[i].Culprit = n + 1
			}
		}
	}
}
