// A rewarder in Go: prefers short, finished answers. go run . BROKERS RUN NAME
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/vmihailenco/msgpack/v5"
)

type Trajectory struct {
	Type    string             `msgpack:"t"`
	Schema  int                `msgpack:"v"`
	GroupID string             `msgpack:"group_id"`
	Index   int                `msgpack:"index"`
	Rewards map[string]float64 `msgpack:"rewards"`
	Text    string             `msgpack:"text"`
	Finish  string             `msgpack:"finish_reason"`
}

type Vote struct {
	Type     string   `msgpack:"t"`
	Schema   int      `msgpack:"v"`
	GroupID  string   `msgpack:"group_id"`
	Index    int      `msgpack:"index"`
	Rewarder string   `msgpack:"rewarder"`
	Outcome  string   `msgpack:"outcome"`
	Value    *float64 `msgpack:"value"`
}

func judge(s Trajectory, name string) Vote {
	vote := Vote{"vote", 1, s.GroupID, s.Index, name, "abstain", nil}
	if s.Finish == "stop" {
		value := 1 / (1 + float64(utf8.RuneCountInString(s.Text))/100)
		vote.Outcome, vote.Value = "value", &value
	}
	return vote
}

func main() {
	brokers, run, name := strings.Split(os.Args[1], ","), os.Args[2], os.Args[3]
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumerGroup(run+".rewarder."+name),
		kgo.ConsumeTopics(run+".trajectories"), kgo.DisableAutoCommit(), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	log.Printf("serving %s of %s", name, run)
	for ctx.Err() == nil {
		var votes []*kgo.Record
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			var sample Trajectory
			known := msgpack.Unmarshal(r.Value, &sample) == nil && sample.Type == "trajectory" && sample.Schema == 1
			if _, mine := sample.Rewards[name]; known && mine {
				value, _ := msgpack.Marshal(judge(sample, name))
				votes = append(votes, &kgo.Record{Topic: run + ".rewards", Key: r.Key, Value: value})
			}
		})
		if err := client.ProduceSync(ctx, slices.Clip(votes)...).FirstErr(); err == nil && ctx.Err() == nil {
			client.CommitUncommittedOffsets(ctx) // behind the durable votes: at least once
		}
	}
}
