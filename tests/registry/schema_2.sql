-- A store as the second schema wrote it: what every later schema must open.
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'inlay','m001_registry','2026-11-29 12:29:14.410200+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'inlay','m002_upkeep','2026-11-29 12:29:14.411277+00:00');
CREATE TABLE "bases" (
   "id" INTEGER PRIMARY KEY,
   "weights" TEXT NOT NULL,
   "prompt" TEXT NOT NULL,
   "name" TEXT NOT NULL,
   "revision" TEXT,
   "architecture" TEXT NOT NULL,
   "source" TEXT NOT NULL,
   "tensors" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "bases" VALUES(1,'sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','base',NULL,'LlamaForCausalLM','/models/base','sha256:7284646adb79cd2c6507fc503598b874b94bc7d2c4b5e11ee193e8ea171249fa','2026-11-29T12:29:14.447349Z');
CREATE TABLE "evals" (
   "id" INTEGER PRIMARY KEY,
   "key" TEXT NOT NULL,
   "subject" TEXT NOT NULL,
   "base_weights" TEXT NOT NULL,
   "base_prompt" TEXT NOT NULL,
   "suite" TEXT NOT NULL,
   "suite_name" TEXT NOT NULL,
   "metric" TEXT NOT NULL,
   "protocol" TEXT NOT NULL,
   "protocol_detail" TEXT NOT NULL,
   "score" REAL NOT NULL,
   "n" INTEGER NOT NULL,
   "low" REAL NOT NULL,
   "high" REAL NOT NULL,
   "outcomes" TEXT NOT NULL,
   "splits" TEXT NOT NULL,
   "device" TEXT NOT NULL,
   "versions" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "evals" VALUES(1,'sha256:53d85bacd4a310dc3ea70e7a58d4f91b2629ada1fc3ea1b6c9cb6895d91074f0','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','general','exact_match/1','sha256:f09ad0d2753aec8340f359a4c552ada7427786483f26a86ce5a13efa80b0e86d','{"template":"chat"}',0.75,4,0.65,0.85,'b:1101','{}','','{}','2026-11-29T12:29:14.471646Z');
INSERT INTO "evals" VALUES(2,'sha256:e56f1fb4e693139ea392b12ceec6bd3c6505255b33564537d3353393f3e9136c','base','sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0','sha256:215972407f07de54bc6971137d056b3d966c705c4ab500c882a8ba128334e4ed','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','general','exact_match/1','sha256:f09ad0d2753aec8340f359a4c552ada7427786483f26a86ce5a13efa80b0e86d','{"template":"chat"}',1.0,4,0.9,1.0,'b:1111','{}','','{}','2026-11-29T12:29:14.472459Z');
CREATE TABLE "journal" (
   "seq" INTEGER PRIMARY KEY,
   "at" TEXT NOT NULL,
   "who" TEXT NOT NULL,
   "verb" TEXT NOT NULL,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "alias" TEXT,
   "moves" INTEGER NOT NULL,
   "from_number" INTEGER,
   "from_ref" TEXT,
   "from_digest" TEXT,
   "to_number" INTEGER,
   "to_ref" TEXT,
   "to_digest" TEXT,
   "why" TEXT NOT NULL,
   "verdict" TEXT,
   "detail" TEXT NOT NULL,
   "previous" TEXT NOT NULL,
   "hash" TEXT NOT NULL
) STRICT;
INSERT INTO "journal" VALUES(1,'2026-11-29T12:29:14.447920Z','anna','add','legal',NULL,0,NULL,NULL,NULL,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','seed 1',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0","record":"sha256:6d230d9bf351439e81b2fa363fcfe99ed6ab1f9831a481be9afef84df0122cb8"}','sha256:0000000000000000000000000000000000000000000000000000000000000000','sha256:9cf614bab6289f6b0974972dc3095ac91cfdcac0d76be5f4a7fb9079367c7d6b');
INSERT INTO "journal" VALUES(2,'2026-11-29T12:29:14.453888Z','anna','add','legal',NULL,0,NULL,NULL,NULL,2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','seed 2',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0","record":"sha256:9ea6a8aa8faf1d04347489e2450337f968e4d18a4d0aef9cfc8adac264ab04da"}','sha256:9cf614bab6289f6b0974972dc3095ac91cfdcac0d76be5f4a7fb9079367c7d6b','sha256:52cb1f3b2eb9bf94cb1ff58d2b386e6428e1c39a7c9e6c16debc86d1663dc73a');
INSERT INTO "journal" VALUES(3,'2026-11-29T12:29:14.459808Z','anna','add','legal',NULL,0,NULL,NULL,NULL,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71','seed 3',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0","record":"sha256:c2ea871b5bef50be9ef0cafbc6259bb5ab904eacad462bf367f767db3b92ab5f"}','sha256:52cb1f3b2eb9bf94cb1ff58d2b386e6428e1c39a7c9e6c16debc86d1663dc73a','sha256:7cd6046c79be7fc0267101207f179244a09baeb3dfbd419cca5fe6db97b0de52');
INSERT INTO "journal" VALUES(4,'2026-11-29T12:29:14.468606Z','anna','add','style',NULL,0,NULL,NULL,NULL,1,'style@v1','sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3','',NULL,'{"base":"sha256:7cf3e68a9031c8b9dc9e515f915189a6cb67c00fffba0efd6dd26694ac9cf1a0","record":"sha256:0ed7b3d4e37259d311458374ef05bb167c90f5f631cd05f06fdf1d5a8965bc48"}','sha256:7cd6046c79be7fc0267101207f179244a09baeb3dfbd419cca5fe6db97b0de52','sha256:0ed95a6aeacb985812aaae29d87b460eecb9eb2173fdeab848149d62abed3887');
INSERT INTO "journal" VALUES(5,'2026-11-29T12:29:14.474872Z','anna','promote','legal','prod',1,NULL,NULL,NULL,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','first',NULL,'{}','sha256:0ed95a6aeacb985812aaae29d87b460eecb9eb2173fdeab848149d62abed3887','sha256:a5cd676c917f7998a4b6636e4be11335f557f3e0b33f46715d1b43b1d9f5ffb2');
INSERT INTO "journal" VALUES(6,'2026-11-29T12:29:14.475425Z','anna','promote','legal','prod',1,1,'legal@v1','sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659',2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','',NULL,'{}','sha256:a5cd676c917f7998a4b6636e4be11335f557f3e0b33f46715d1b43b1d9f5ffb2','sha256:ce8625fdc5696f62268f906dff029cdfc8102a687a59176e6e2cf0282e8120ff');
INSERT INTO "journal" VALUES(7,'2026-11-29T12:29:14.475914Z','anna','promote','style','prod',1,NULL,NULL,NULL,1,'style@v1','sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3','',NULL,'{}','sha256:ce8625fdc5696f62268f906dff029cdfc8102a687a59176e6e2cf0282e8120ff','sha256:1599a3043a3a5d2a274824dd94266e4806a49105548fbf48f34c626b15640c4c');
INSERT INTO "journal" VALUES(8,'2026-11-29T12:29:14.477369Z','anna','lock','acme',NULL,0,NULL,NULL,NULL,1,'acme@v1','sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a','',NULL,'{"record":"sha256:b7cdcaadfb4ec888098d0214f7ae1b9a52262bcf72e10879bbe4b884ddfcbc62"}','sha256:1599a3043a3a5d2a274824dd94266e4806a49105548fbf48f34c626b15640c4c','sha256:28b3d745cdc9b0b433252fdbfdc7d55f6d837dc3f95bf587510f12bba5e2c436');
INSERT INTO "journal" VALUES(9,'2026-11-29T12:29:14.479294Z','anna','promote','acme','prod',1,NULL,NULL,NULL,1,'acme@v1','sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a','',NULL,'{}','sha256:28b3d745cdc9b0b433252fdbfdc7d55f6d837dc3f95bf587510f12bba5e2c436','sha256:9b48cbd0082ad77d7d660c80c1320ff81bf27baa96c4d19ba215190fab2e8279');
INSERT INTO "journal" VALUES(10,'2026-11-29T12:29:14.480761Z','anna','lock','big',NULL,0,NULL,NULL,NULL,1,'big@v1','sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680','',NULL,'{"record":"sha256:75715b88660d5573892247910c5af4179233293eb821c3dbf10547bff72703d7"}','sha256:9b48cbd0082ad77d7d660c80c1320ff81bf27baa96c4d19ba215190fab2e8279','sha256:5a85af219cd879848f9c16f6a7be4f297d14e857b5b8896992b7522d51e68776');
INSERT INTO "journal" VALUES(11,'2026-11-29T12:29:14.481684Z','anna','promote','big','prod',1,NULL,NULL,NULL,1,'big@v1','sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680','',NULL,'{}','sha256:5a85af219cd879848f9c16f6a7be4f297d14e857b5b8896992b7522d51e68776','sha256:929a6624b4003293ea730a89179d54e50fcd4d2f813c8e352c8700e4c6ab3815');
INSERT INTO "journal" VALUES(12,'2026-11-29T12:29:14.483298Z','anna','guard','legal','staging',0,NULL,NULL,NULL,NULL,NULL,NULL,'contract',NULL,'{"guard":{"forget":0.1,"pinned":{"general":"sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767"},"suites":{"general":["general"]}}}','sha256:929a6624b4003293ea730a89179d54e50fcd4d2f813c8e352c8700e4c6ab3815','sha256:8ed5d6770b35d98284c2d60b0b33ffd0363fe108a4f21dcc4f0524c46d465268');
INSERT INTO "journal" VALUES(13,'2026-11-29T12:29:14.487347Z','anna','describe','legal',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,'{"description":"clauses","owner":"bob","tag":["law"]}','sha256:8ed5d6770b35d98284c2d60b0b33ffd0363fe108a4f21dcc4f0524c46d465268','sha256:f774d66701c93a869858c4317f94318fab1731e90681f94b77a9c7820c2d2bb4');
INSERT INTO "journal" VALUES(14,'2026-11-29T12:29:14.491441Z','anna','promote','legal','prod',1,2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71','',NULL,'{}','sha256:f774d66701c93a869858c4317f94318fab1731e90681f94b77a9c7820c2d2bb4','sha256:fc9d09442254f7f051a414798d0153bc5da2fee347d711b191dad781ee3426d4');
INSERT INTO "journal" VALUES(15,'2026-11-29T12:29:14.495259Z','anna','yank','legal',NULL,0,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',NULL,NULL,NULL,'bad data',NULL,'{}','sha256:fc9d09442254f7f051a414798d0153bc5da2fee347d711b191dad781ee3426d4','sha256:c52630217a0ba23ea2b616538494974ea6d29fbabf896b193fa1e2807889d617');
INSERT INTO "journal" VALUES(16,'2026-11-29T12:29:14.495704Z','anna','rollback','legal','prod',1,3,'legal@v3','sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',2,'legal@v2','sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953','bad data',NULL,'{"because":"legal@v3","cause":15,"entry":6}','sha256:c52630217a0ba23ea2b616538494974ea6d29fbabf896b193fa1e2807889d617','sha256:8c841e8bcfe02891af67466c0bb0121c8f1f35462100bcc5366cb0fcc7dbec72');
CREATE TABLE "lock_members" (
   "lock" INTEGER NOT NULL REFERENCES "locks"("id"),
   "position" INTEGER NOT NULL,
   "path" TEXT NOT NULL,
   "version" INTEGER REFERENCES "versions"("id"),
   "used_lock" INTEGER REFERENCES "locks"("id"),
   "digest" TEXT NOT NULL,
   "weight" REAL NOT NULL,
   PRIMARY KEY ("lock", "position")
) STRICT;
INSERT INTO "lock_members" VALUES(1,0,'stack.0',2,NULL,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1.0);
INSERT INTO "lock_members" VALUES(1,1,'stack.1',4,NULL,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',0.5);
INSERT INTO "lock_members" VALUES(2,0,'stack.0',NULL,1,'sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a',1.0);
INSERT INTO "lock_members" VALUES(2,1,'stack.0.stack.0',2,NULL,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1.0);
INSERT INTO "lock_members" VALUES(2,2,'stack.0.stack.1',4,NULL,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',0.5);
CREATE TABLE "locks" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "number" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   "base" INTEGER NOT NULL REFERENCES "bases"("id"),
   "recipe" TEXT NOT NULL,
   "tree" TEXT NOT NULL,
   "guard" TEXT,
   "provenance" TEXT,
   "author" TEXT NOT NULL,
   "why" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "locks" VALUES(1,'acme',1,'sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a',1,'{"stack": ["legal@prod", {"use": "style@prod", "weight": 0.5}]}','{"stack":[{"name":"legal@v2","use":"sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953","weight":1.0},{"name":"style@v1","use":"sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3","weight":0.5}]}',NULL,NULL,'anna','','2026-11-29T12:29:14.476950Z');
INSERT INTO "locks" VALUES(2,'big',1,'sha256:4079e08abd17e0e768571b846fd9746d99e73a51dcd6d5e81e7bb3b1e2f4b680',1,'{"stack": ["acme@prod"]}','{"stack":[{"lock":"sha256:532213c1383a5a82187e7e322b7027a4a2eedacfe16352b11275e3428c7ae52a","name":"acme@v1","stack":[{"name":"legal@v2","use":"sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953","weight":1.0},{"name":"style@v1","use":"sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3","weight":0.5}]}]}',NULL,NULL,'anna','','2026-11-29T12:29:14.480319Z');
CREATE TABLE "names" (
   "name" TEXT PRIMARY KEY,
   "kind" TEXT NOT NULL,
   "owner" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "names" VALUES('legal','adapter','anna','2026-11-29T12:29:14.446965Z');
INSERT INTO "names" VALUES('style','adapter','anna','2026-11-29T12:29:14.468039Z');
INSERT INTO "names" VALUES('acme','variant','anna','2026-11-29T12:29:14.476743Z');
INSERT INTO "names" VALUES('big','variant','anna','2026-11-29T12:29:14.480132Z');
CREATE TABLE "reports" (
   "id" INTEGER PRIMARY KEY,
   "subject" TEXT NOT NULL,
   "kind" TEXT NOT NULL,
   "object" TEXT NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "reports" VALUES(1,'sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659','forgetting','sha256:5bbb438de72e21ae508115f7241eb50e37beadee8541e0c1a04db431054682b9','2026-11-29T12:29:14.474046Z');
CREATE TABLE "suites" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL,
   "digest" TEXT NOT NULL,
   "items" TEXT NOT NULL,
   "metric" TEXT NOT NULL,
   "skills" TEXT NOT NULL,
   "n" INTEGER NOT NULL,
   "created" TEXT NOT NULL
) STRICT;
INSERT INTO "suites" VALUES(1,'general','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','sha256:cc462989fcbee0f15620c1c3ce603864a5401e619cb3e805cd5c6500fa7e6767','exact_match/1','{"all":{"items":4}}',4,'2026-11-29T12:29:14.470579Z');
CREATE TABLE "version_files" (
   "version" INTEGER NOT NULL REFERENCES "versions"("id"),
   "path" TEXT NOT NULL,
   "size" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   PRIMARY KEY ("version", "path")
) STRICT;
INSERT INTO "version_files" VALUES(1,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(1,'adapter_model.safetensors',1548,'sha256:124cc213970382757478b1489dbbe5ffa673fd3180be65d69a46d6a6da22f962');
INSERT INTO "version_files" VALUES(2,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(2,'adapter_model.safetensors',1548,'sha256:5b038cadea5678b7834de643e1fddc6589701c2255ac2007d736f1d073bf0878');
INSERT INTO "version_files" VALUES(3,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(3,'adapter_model.safetensors',1548,'sha256:3eab380cf4e0b7c183f707bf49870fc76ff3fca79301551b83fc679182d91b20');
INSERT INTO "version_files" VALUES(4,'adapter_config.json',108,'sha256:35f14ab19d91a3baab95dc0b356e726e13e11b5d152dc8d7da062c673743f9af');
INSERT INTO "version_files" VALUES(4,'adapter_model.safetensors',1548,'sha256:a94cb60bdac72c9fe43a346e14c60202ca36bd70cc12ccae57cfa5dad6e142e3');
CREATE TABLE "versions" (
   "id" INTEGER PRIMARY KEY,
   "name" TEXT NOT NULL REFERENCES "names"("name"),
   "number" INTEGER NOT NULL,
   "digest" TEXT NOT NULL,
   "base" INTEGER NOT NULL REFERENCES "bases"("id"),
   "kind" TEXT NOT NULL,
   "rank" INTEGER NOT NULL,
   "targets" TEXT NOT NULL,
   "parameters" INTEGER NOT NULL,
   "exactness" TEXT NOT NULL,
   "size" INTEGER NOT NULL,
   "trained_on" TEXT,
   "mismatch" INTEGER NOT NULL,
   "run" TEXT,
   "lineage" TEXT,
   "notes" TEXT NOT NULL,
   "author" TEXT NOT NULL,
   "why" TEXT NOT NULL,
   "created" TEXT NOT NULL
, licence TEXT, card TEXT) STRICT;
INSERT INTO "versions" VALUES(1,'legal',1,'sha256:767070d9fe588ae36bfa4dfdc9099e463d7ae946b2bd49dd9f93f30fb7fe4659',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 1','2026-11-29T12:29:14.447473Z',NULL,NULL);
INSERT INTO "versions" VALUES(2,'legal',2,'sha256:ae4993d4fd7dfb42ef5cd9beb06ad14429e0c73e84c632e22e5872e56bfea953',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 2','2026-11-29T12:29:14.453528Z',NULL,NULL);
INSERT INTO "versions" VALUES(3,'legal',3,'sha256:415eff08c04fad07defb3f99694a78992bded703b287bf5f1a46763f73ec8c71',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,NULL,NULL,'["neither a licence nor a model card came with it"]','anna','seed 3','2026-11-29T12:29:14.459452Z',NULL,NULL);
INSERT INTO "versions" VALUES(4,'style',1,'sha256:2a19dd13f1b0a2212c864eddeb62f4f86d0d9500b4ceb0d1ac3c732fc60774d3',1,'lora',2,'["q_proj","v_proj"]',128,'exact',1656,NULL,0,'sha256:c87c907227f6b9aa68b79fd93a59f7fa1feff5cbde31c8fe9002f1447a10ce92','{"from":"elsewhere"}','["neither a licence nor a model card came with it"]','anna','','2026-11-29T12:29:14.468220Z',NULL,NULL);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE UNIQUE INDEX "idx_bases_weights_prompt_source"
    ON "bases" ("weights", "prompt", "source");
CREATE UNIQUE INDEX "idx_versions_name_number"
    ON "versions" ("name", "number");
CREATE UNIQUE INDEX "idx_versions_name_digest"
    ON "versions" ("name", "digest");
CREATE INDEX "idx_versions_digest"
    ON "versions" ("digest");
CREATE UNIQUE INDEX "idx_locks_name_number"
    ON "locks" ("name", "number");
CREATE INDEX "idx_locks_name_digest"
    ON "locks" ("name", "digest");
CREATE INDEX "idx_locks_digest"
    ON "locks" ("digest");
CREATE INDEX "idx_lock_members_version"
    ON "lock_members" ("version");
CREATE INDEX "idx_lock_members_used_lock"
    ON "lock_members" ("used_lock");
CREATE INDEX "idx_suites_name"
    ON "suites" ("name");
CREATE INDEX "idx_suites_digest"
    ON "suites" ("digest");
CREATE UNIQUE INDEX "idx_evals_key"
    ON "evals" ("key");
CREATE INDEX "idx_evals_subject_suite"
    ON "evals" ("subject", "suite");
CREATE INDEX "idx_evals_suite"
    ON "evals" ("suite");
CREATE INDEX "idx_reports_subject_kind"
    ON "reports" ("subject", "kind");
CREATE INDEX journal_live ON journal (name, alias, seq) WHERE moves = 1;
CREATE INDEX journal_guards ON journal (name, alias, seq) WHERE verb = 'guard';
CREATE INDEX "idx_journal_name_seq"
    ON "journal" ("name", "seq");
CREATE TRIGGER names_refuse_update BEFORE UPDATE ON names BEGIN SELECT RAISE(ABORT, 'names are immutable: update refused'); END;
CREATE TRIGGER names_refuse_delete BEFORE DELETE ON names BEGIN SELECT RAISE(ABORT, 'names are immutable: delete refused'); END;
CREATE TRIGGER bases_refuse_update BEFORE UPDATE ON bases BEGIN SELECT RAISE(ABORT, 'bases are immutable: update refused'); END;
CREATE TRIGGER bases_refuse_delete BEFORE DELETE ON bases BEGIN SELECT RAISE(ABORT, 'bases are immutable: delete refused'); END;
CREATE TRIGGER versions_refuse_update BEFORE UPDATE ON versions BEGIN SELECT RAISE(ABORT, 'versions are immutable: update refused'); END;
CREATE TRIGGER versions_refuse_delete BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions are immutable: delete refused'); END;
CREATE TRIGGER version_files_refuse_update BEFORE UPDATE ON version_files BEGIN SELECT RAISE(ABORT, 'version_files are immutable: update refused'); END;
CREATE TRIGGER version_files_refuse_delete BEFORE DELETE ON version_files BEGIN SELECT RAISE(ABORT, 'version_files are immutable: delete refused'); END;
CREATE TRIGGER locks_refuse_update BEFORE UPDATE ON locks BEGIN SELECT RAISE(ABORT, 'locks are immutable: update refused'); END;
CREATE TRIGGER locks_refuse_delete BEFORE DELETE ON locks BEGIN SELECT RAISE(ABORT, 'locks are immutable: delete refused'); END;
CREATE TRIGGER lock_members_refuse_update BEFORE UPDATE ON lock_members BEGIN SELECT RAISE(ABORT, 'lock_members are immutable: update refused'); END;
CREATE TRIGGER lock_members_refuse_delete BEFORE DELETE ON lock_members BEGIN SELECT RAISE(ABORT, 'lock_members are immutable: delete refused'); END;
CREATE TRIGGER suites_refuse_update BEFORE UPDATE ON suites BEGIN SELECT RAISE(ABORT, 'suites are immutable: update refused'); END;
CREATE TRIGGER suites_refuse_delete BEFORE DELETE ON suites BEGIN SELECT RAISE(ABORT, 'suites are immutable: delete refused'); END;
CREATE TRIGGER evals_refuse_update BEFORE UPDATE ON evals BEGIN SELECT RAISE(ABORT, 'evals are immutable: update refused'); END;
CREATE TRIGGER evals_refuse_delete BEFORE DELETE ON evals BEGIN SELECT RAISE(ABORT, 'evals are immutable: delete refused'); END;
CREATE TRIGGER reports_refuse_update BEFORE UPDATE ON reports BEGIN SELECT RAISE(ABORT, 'reports are immutable: update refused'); END;
CREATE TRIGGER reports_refuse_delete BEFORE DELETE ON reports BEGIN SELECT RAISE(ABORT, 'reports are immutable: delete refused'); END;
CREATE TRIGGER journal_refuse_update BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'journal are immutable: update refused'); END;
CREATE TRIGGER journal_refuse_delete BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'journal are immutable: delete refused'); END;
CREATE INDEX journal_targets ON journal (name, to_number, alias, seq) WHERE moves = 1;
CREATE INDEX journal_states ON journal (name, from_number, verb) WHERE verb IN ('yank', 'retire', 'purge');
CREATE INDEX journal_described ON journal (name, seq) WHERE verb = 'describe';
CREATE INDEX "idx_journal_at"
    ON "journal" ("at");
CREATE INDEX "idx_evals_suite_name"
    ON "evals" ("suite_name");
CREATE INDEX "idx_version_files_digest"
    ON "version_files" ("digest");
COMMIT;
PRAGMA user_version=2;
