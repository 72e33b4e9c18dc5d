package layout

import (
	"math/bits"

	"gonum.org/v1/gonum/mathext/prng"
)

// Strategy cover puts each function at each of its residues modulo a page in
// as few layouts as that takes: with alignment 16, seeds 1 to 4 give each
// residue mod 64 once, 1 to 16 mod 256, 1 to 64 mod 1024 and 1 to 256 mod 4096;
// so does every second block of 256 seeds after that.
//
// With n = seed-1 in base 4, its last digits s0 to s3, a function is moved by
// 16 (t0 + 4 t1 + 16 t2 + 64 t3) bytes, modulo 4096, from where the baseline
// has it: t0 is a permutation of s0 that depends on s1, s2 and s3; t1 one of s1
// that depends on t0, s2 and s3; t2 one of s2, by t0, t1 and s3; t3 one of s3,
// by t0, t1 and t2. So all 4 values of t0 come in each 4 seeds, all 16 of
// (t0, t1) in each 16, and so on, whatever the permutations are.
//
// Those of t0 and t1 are dealt anew to each run of neighbours, so two functions
// of different runs meet in all ways. Within a run no padding is put: neighbours
// that touch go on touching. Runs are cut anew every 16 seeds, so that the
// verdicts tell neighbours apart, and whom a cut holds apart others leave
// together. This is why t2 and t3 are dealt to all runs alike: a function is in
// one run now and in another then. In the third block there is one run only, so
// that nothing is held apart from its neighbour: a rotation of the whole of
// .text.
//
// In every second block, from 257 to 512 on, other functions touch: each 16
// seeds have an order of their own, cut into runs. There the 16 layouts give
// each residue mod 256 once; over several orders more is left to chance.
//
// A section that is not aligned to 16 bytes is a run by itself. One aligned to
// more moves by what its alignment allows; one aligned to less moves by what is
// left as well, which is another number of bytes in each block.

// runLength is the mean number of functions in a run: longer ones leave more
// neighbours touching and make fewer relations in a block. Between two runs are
// 2 KiB on average, by which .text grows.
const runLength = 8

// coverStep is the step of an address in this version of the strategy, in bytes: seeds
// keep their layouts whatever Step is.
const coverStep = 16

// coverUnits is the number of residues modulo a page, in those steps.
const coverUnits = Modulus / coverStep

// rotations is the block of seeds that leave no gap. Bugs that need two
// neighbours held together which a block holds apart are few, so it is not the
// first.
const rotations = 2

// cutSeeds is how many seeds have the cuts into runs in common, and the order
// where that changes.
const cutSeeds = 16

// coverPlan is the plan of a seed.
func coverPlan(seed uint32, layout []Section) (p Plan) {
	n := seed - 1 // seed 0 is the last of all blocks
	block := uint64(n / coverUnits)
	rest := uint64(bits.Reverse8(uint8(block << 4))) // below coverStep
	order := make([]int, len(layout))
	for i := range order {
		order[i] = i
	}
	cut := uint64(n) / cutSeeds
	if block%2 == 1 {
		order = regrouped(layout, shuffled(n/cutSeeds, order))
		p.Order = Displaced(layout, order)
	}
	var run uint64 // number of runs so far
	output, placer := MainText(layout), NewPlacer(layout)
	first, fresh, odd := "", true, false
	for place, i := range order {
		s := layout[i]
		if s.Output != output {
			continue
		}
		align, gap := s.Alignment(), uint64(0)
		movable := Movable(layout, place)
		if movable && (fresh || align > coverStep || block != rotations && (odd || align < coverStep || mix(cut, uint64(i))%runLength == 0)) {
			run++
			shift := coverStep*uint64(digits(n, run)) + rest
			if gap = (s.Address + shift&^(align-1) - placer.Next(i)) % Modulus; gap > 0 {
				p.Paddings = append(p.Paddings, Padding{Section: s.Name, Bytes: gap})
			}
		}
		// A section that stands where it stands, or moves in larger steps, does
		// not hand its shift on.
		fresh, odd = !movable || align > coverStep, align < coverStep
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

// digits is the number with the digits t3 t2 t1 t0, in base 4, of a run.
func digits(n uint32, run uint64) uint32 {
	block := n / coverUnits
	if block == rotations {
		return n % coverUnits
	}
	s := func(i int) uint32 { return n >> (2 * i) & 3 }
	key := func(run uint64, values ...uint32) uint64 {
		k := mix(uint64(block), run)
		for _, v := range values {
			k = mix(k, uint64(v))
		}
		return k
	}
	t0 := deal(key(run, 0, s(1), s(2), s(3)), s(0))
	t1 := deal(key(run, 1, t0, s(2), s(3)), s(1))
	t2 := deal(key(0, 2, t0, t1, s(3)), s(2))
	t3 := deal(key(0, 3, t0, t1, t2), s(3))
	return t0 + 4*t1 + 16*t2 + 64*t3
}

// deal is what a digit becomes under one of the 24 permutations of 0 to 3.
func deal(key uint64, digit uint32) uint32 {
	p := [4]uint32{0, 1, 2, 3}
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
