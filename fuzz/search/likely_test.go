package search

import (
	"math/rand/v2"
	"testing"
)

// One of 1,000 functions fails in one boot of two, by itself or with others before it: how
// many boots find it, and how often it is another one.
func TestChances(t *testing.T) {
	const games, n = 40, 1000
	for _, test := range []struct {
		name  string
		alone bool
		most  int // boots on average: the bits of the answer are worth 31
	}{
		{"alone", true, 45},
		{"with others", false, 60},
	} {
		t.Run(test.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			boots, wrong := 0, 0
			for range games {
				at := random.IntN(n)
				c := newChances(n, 10, 3+random.IntN(5), true) // as the first boots may flatter the rate or belittle it
				found, sure := c.best()
				for sure < 0.95 {
					border, function := c.next()
					if border < 0 && function < 0 {
						t.Fatalf("gives up with %d likely by %f", found, sure)
					}
					answer := Passes
					if (border > at || border < 0 && function == at && test.alone) && random.IntN(2) == 0 {
						answer = Fails
					}
					boots++
					c.learn(border, function, answer)
					if found, sure = c.best(); border < 0 && answer == Fails {
						found, sure = function, 1
					}
				}
				if found != at {
					wrong++
				}
			}
			t.Logf("%d boots on average, %d of %d wrong", boots/games, wrong, games)
			if boots/games > test.most || wrong > games/20 {
				t.Errorf("%d boots on average, %d of %d wrong", boots/games, wrong, games)
			}
		})
	}
}

// Other crashes tell nothing: where each boot is one, it ends.
func TestChancesUnknown(t *testing.T) {
	c := newChances(50, 10, 5, true)
	for n := range 1000 {
		border, function := c.next()
		if border < 0 && function < 0 {
			return
		}
		if c.learn(border, function, Unknown); n == 999 {
			t.Error("it does not end")
		}
	}
}
