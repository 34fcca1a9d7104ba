"""What do German, English and Russian names teach about Dutch and Ukrainian ones? `python examples/quickstart.py`: a minute."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_tracin import ContributionCallback, TracInCallback, TracInRun
from lightning_tracin.studies.datasets import load_cldr


class Classifier(pl.LightningModule):  # your own module: nothing in it is there for TracIn
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Embedding(8192, 32), torch.nn.Linear(32, 5))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.model(batch["pairs"]).mean(dim=1), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def collate(rows):
    texts = [f" {row['text']:24.24}" for row in rows]
    pairs = [[(97 * ord(text[i]) + ord(text[i + 1])) % 8192 for i in range(24)] for text in texts]
    return {"pairs": torch.tensor(pairs), "labels": torch.tensor([row["label"] for row in rows])}


names = load_cldr(["de", "en", "nl", "ru", "uk"]).dataset  # columns: text, label, language, item
train = names.filter(lambda row: ord(row["item"][-1]) % 5 and row["language"] in ("de", "en", "ru"))
val = names.filter(lambda row: ord(row["item"][-1]) % 5 == 0)
tracin = TracInCallback("runs/names", language_column="language", item_column="item")
account = ContributionCallback("runs/names", language_column="language", item_column="item")
trainer = pl.Trainer(max_epochs=3, callbacks=[tracin, account], logger=False, enable_checkpointing=False)
trainer.fit(Classifier(), DataLoader(train, 32, shuffle=True, collate_fn=collate), DataLoader(val, 32, collate_fn=collate))
print(TracInRun.open("runs/names"))  # the page is in runs/names/results
