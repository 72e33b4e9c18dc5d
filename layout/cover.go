package layout

import (
	"math/bits"
	"slices"

	"gonum.org/v1/gonum/mathext/prng"
)

// Strategy cover puts each function at each of its residues modulo a page in
// as few layouts as that takes. Its layouts are numbered by n, from 0 on, and step is
// that of the kernel's functions (StepOf): with 16, layouts 0 to 3 give each residue
// mod 64 once, 0 to 15 mod 256, 0 to 63 mod 1024 and 0 to 255 mod 4096; so does every
// second block of 256 after that. With 4 and 1 each takes 4 and 16 times as many.
//
// With the digits s0, s1, ... of n in base 4, the last first, a function is moved by
// step (t0 + 4 t1 + 16 t2 + ...) bytes, modulo 4096, from where the baseline has it:
// each ti is a permutation of si that depends on the t before and on the s behind it.
// So all 4 values of t0 come in each 4 layouts, all 16 of (t0, t1) in each 16, and so
// on, whatever the permutations are.
//
// Those below 256 bytes are dealt anew to each run of neighbours, so two functions
// of different runs meet in all ways. Within a run no padding is put: neighbours
// that touch go on touching. Runs are cut anew when all of these digits have been had,
// so that the verdicts tell neighbours apart, and whom a cut holds apart others leave
// together. This is why the other digits are dealt to all runs alike: a function is in
// one run now and in another then. In the third block there is one run only, so
// that nothing is held apart from its neighbour: a rotation of the whole of
// .text.
//
// In every second block other functions touch: the layouts that have their cuts in
// common have an order of their own, cut into runs. There they give each residue mod
// 256 once; over several orders more is left to chance.
//
// A section that is aligned to less than the step is a run by itself. One aligned to
// more moves by what its alignment allows; one aligned to less moves by what is
// left as well, which is another number of bytes in each block.

// runLength is the mean number of functions in a run: longer ones leave more
// neighbours touching and make fewer relations in a block. Between two runs are
// 2 KiB on average, by which .text grows.
const runLength = 8

// runModulus is what each run has residues of its own of, in bytes.
const runModulus = 256

// rotations is the block that leaves no gap. Bugs that need two
// neighbours held together which a block holds apart are few, so it is not the
// first.
const rotations = 2

// A round of seeds goes on with the residues first, for so many of them or for as many
// as give each residue mod 64, and changes the order then.
const (
	paddedSeeds  = 40
	orderedSeeds = 24
)

// coverPlan is the plan of a seed by the current version: at the end of a round a
// function gets another neighbour with each seed, and nothing is padded, as by
// Shuffle; the others have the numbers of cover's own layouts, without a hole.
func coverPlan(seed uint32, layout []Section) Plan {
	step := StepOf(layout)
	padded := max(paddedSeeds, uint32(64/step))
	n := seed - 1 // seed 0 is the last of all
	round, n := n/(padded+orderedSeeds), n%(padded+orderedSeeds)
	if n >= padded {
		return Shuffle.Plan(seed, layout)
	}
	return residuesPlan(round*padded+n, step, layout)
}

// StepOf is the step of the addresses of a layout's functions, in bytes: 1, 4, 16 or
// 64, and no more than the alignment that is the most frequent one of those that can
// move. GCC's -Os gives 1, arm64 has 4.
func StepOf(layout []Section) uint64 {
	var count [64]int // by the alignment's logarithm
	outputs := Outputs(layout)
	for i, s := range layout {
		if Movable(layout, i) && slices.Contains(outputs, s.Output) {
			count[bits.TrailingZeros64(s.Alignment())]++
		}
	}
	most := 4
	for n := range count {
		if count[n] > count[most] {
			most = n
		}
	}
	return 1 << (min(most, 6) &^ 1)
}

// residuesPlan is the plan of a number.
func residuesPlan(n uint32, step uint64, layout []Section) (p Plan) {
	block := uint64(n) / (Modulus / step)
	rest := uint64(bits.Reverse8(uint8(block * (256 / step)))) // below the step
	order := make([]int, len(layout))
	for i := range order {
		order[i] = i
	}
	cut := uint64(n) / (runModulus / step)
	if block%2 == 1 {
		order = regrouped(layout, shuffled(uint32(cut), order))
		p.Order = Displaced(layout, order)
	}
	var run uint64 // number of runs so far
	placer := NewPlacer(layout)
	first, fresh, odd := "", true, false
	for place, i := range order {
		s := layout[i]
		if !placer.Has(i) {
			continue
		}
		align, gap := s.Alignment(), uint64(0)
		movable := Movable(layout, place)
		if movable && (fresh || align > step || block != rotations && (odd || align < step || mix(cut, uint64(i))%runLength == 0)) {
			run++
			shift := step*moved(n, step, run) + rest
			if gap = (s.Address + shift&^(align-1) - placer.Next(i)) % Modulus; gap > 0 {
				p.Paddings = append(p.Paddings, Padding{Section: s.Name, Bytes: gap})
			}
		}
		// A section that stands where it stands, or moves in larger steps, does
		// not hand its shift on.
		fresh, odd = !movable || align > step, align < step
		placer.Put(i, gap)
		if movable && first == "" {
			first = s.Name
		}
	}
	if p.Paddings == nil && p.Order == nil && first != "" { // the rotation by nothing is the baseline
		p.Paddings = []Padding{{Section: first, Bytes: Modulus}}
	}
	return p
}

// moved is by how many steps a run is moved: the number with the digits t.
func moved(n uint32, step, run uint64) (steps uint64) {
	units := Modulus / step
	block := uint64(n) / units
	if block == rotations {
		return uint64(n) % units
	}
	digit := func(i uint64) uint64 { return uint64(n) / i % 4 }
	var dealt []uint64
	for one := uint64(1); one < units; one *= 4 {
		key := mix(block, run)
		if one*step >= runModulus {
			key = mix(block, 0)
		}
		key = mix(key, uint64(len(dealt)))
		for _, t := range dealt {
			key = mix(key, t)
		}
		for behind := 4 * one; behind < units; behind *= 4 {
			key = mix(key, digit(behind))
		}
		t := deal(key, digit(one))
		dealt = append(dealt, t)
		steps += one * t
	}
	return steps
}

// deal is what a digit becomes under one of the 24 permutations of 0 to 3.
func deal(key, digit uint64) uint64 {
	p := [4]uint64{0, 1, 2, 3}
	for i := uint64(3); i > 0; i-- {
		j := key % (i + 1)
		key /= i + 1
		p[i], p[j] = p[j], p[i]
	}
	return p[digit]
}

// mix is a number that depends on both in a way that looks random.
func mix(a, b uint64) uint64 {
	g := prng.NewSplitMix64(a)
	g.Seed(g.Uint64() ^ b)
	return g.Uint64()
}
