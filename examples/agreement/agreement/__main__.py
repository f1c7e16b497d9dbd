"""Train, score, select, and say what the neurons do: `python -m agreement`."""

from agreement.language import sentences
from agreement.neurons import report, score, select
from agreement.training import train

model = train()
totals, layout = score(model, sentences(500, seed=1))
chosen = select(totals, layout, count=9)  # 2 % of the neurons
print(f"{chosen}: {', '.join(f'{n.module_name} {n.layer_idx}.{n.neuron_idx}' for n in chosen)}")
for name, value in report(model, sentences(500, seed=2), chosen, layout).items():
    print(f"{name:18s} {value:.4f}")
