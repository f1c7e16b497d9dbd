"""Train, score, select, and say what the neurons do: `python -m agreement`."""

from agreement.language import sentences
from agreement.neurons import foretold, report, score, select
from agreement.training import train

import culnig_fast as cf

model = train()
data = sentences(500, seed=1)
totals, layout = score(model, data)
chosen = select(totals, layout, count=9)  # 2 % of the neurons
print(f"{chosen}: {', '.join(f'{n.module_name} {n.layer_idx}.{n.neuron_idx}' for n in chosen)}")
some = cf.select_random(layout, 40, seed=0)
print(f"rank correlation with silencing one by one: {foretold(model, data, totals, some, layout).spearman:.2f}")
for name, value in report(model, sentences(500, seed=2), chosen, layout).items():
    print(f"{name:18s} {value:.4f}")
