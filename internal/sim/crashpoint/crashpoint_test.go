package crashpoint

import (
	"flag"
	"os"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

var (
	imagesFlag   = flag.Int("crash.images", 0, "how many images to open; 0: a sample")
	perOpFlag    = flag.Float64("crash.perop", 8, "images per operation, with -crash.images")
	seedFlag     = flag.Uint64("crash.seed", 1, "seed of scenarios and images")
	workersFlag  = flag.Int("crash.workers", 2, "scenarios at a time")
	scenarioFlag = flag.String("crash.scenario", "", "only this scenario")
	atFlag       = flag.Int("crash.at", -1, "crash after this many operations (TestOne)")
	modeFlag     = flag.String("crash.mode", "none", "mode of the image (TestOne)")
	drawFlag     = flag.Uint64("crash.draw", 0, "seed of the image (TestOne)")
	dumpFlag     = flag.String("crash.dump", "", "directory for the images of failures")
)

func chosen(t *testing.T) []Scenario {
	if *scenarioFlag == "" {
		return Scenarios
	}
	i := slices.IndexFunc(Scenarios, func(s Scenario) bool { return s.Name == *scenarioFlag })
	if i < 0 {
		t.Fatalf("no scenario %q", *scenarioFlag)
	}
	return Scenarios[i : i+1]
}

// TestScenarios crashes every scenario, at a sample of its operations unless told
// otherwise.
func TestScenarios(t *testing.T) {
	dump := *dumpFlag
	if dump == "" {
		dump = os.TempDir() + "/crashpoint"
	}
	perOp := *perOpFlag
	if *imagesFlag == 0 {
		perOp = 0.12
	}
	tally, err := Explore(Options{
		Scenarios: chosen(t), Images: *imagesFlag, PerOp: perOp, Seed: *seedFlag, Workers: *workersFlag, DumpDir: dump, Failures: 3,
		Progress: func(name string, x Tally) { t.Logf("%-40s %v", name, x) },
	})
	t.Log(tally)
	if err != nil {
		t.Fatal(err)
	}
	if *scenarioFlag == "" && len(Scenarios) < 40 {
		t.Errorf("only %d scenarios", len(Scenarios))
	}
}

// TestOne checks one image, that of a failure.
func TestOne(t *testing.T) {
	if *atFlag < 0 {
		*scenarioFlag, *atFlag = "start", 7
	}
	mode, ok := simfs.ParseMode(*modeFlag)
	if !ok {
		t.Fatalf("no mode %q", *modeFlag)
	}
	tally, err := Explore(Options{Scenarios: chosen(t), Seed: *seedFlag, Only: true, At: *atFlag, Mode: mode, Draw: *drawFlag, DumpDir: *dumpFlag})
	t.Log(tally)
	if err != nil {
		t.Fatal(err)
	}
}
